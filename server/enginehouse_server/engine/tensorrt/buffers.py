"""Memory of the host from which the device is fed, and as much of the device, laid out alike."""

from collections.abc import Mapping
from typing import cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from enginehouse_server.engine.cuda import CudaDevice

from .graphs import Copy

__all__ = ["ALIGNMENT", "Staged", "StagedArrays", "aligned"]

ALIGNMENT = 256  # bytes: what TensorRT demands of an address


class Staged:
    """Pinned memory and the same on the device. Whoever makes it frees it."""

    def __init__(self, device: CudaDevice, num_bytes: int) -> None:
        """Allocates both.

        Raises:
            DeviceError: There is not as much.
        """
        self.num_bytes = num_bytes
        self._on_device = device.allocate(num_bytes)
        try:
            self._on_host = device.allocate_pinned(num_bytes)
        except BaseException:
            self._on_device.free()
            raise

    def address(self, offset: int = 0) -> int:
        """On the device."""
        return self._on_device.address + offset

    def array(self, offset: int, count: int, dtype: DTypeLike) -> NDArray[np.generic]:
        """So many numbers of the host's memory, shared with it."""
        num_bytes = count * np.dtype(dtype).itemsize
        content = self._on_host.array((self.num_bytes,), np.uint8)
        return cast(NDArray[np.generic], content[offset : offset + num_bytes].view(dtype))

    def copy(self, num_bytes: int, offset: int = 0) -> Copy:
        """A copy of a part, either way."""
        return Copy(self.address(offset), self._on_host.address + offset, num_bytes)

    def free(self) -> None:
        """Gives both back; nothing may be using them. Twice is once."""
        self._on_device.free()
        self._on_host.free()


class StagedArrays:
    """Arrays one after the other in one memory, so that one copy moves all of them.

    Attributes:
        arrays: By name, of the host, one dimension each.
        addresses: By name, on the device.
        copy: Of all of it.
    """

    def __init__(self, device: CudaDevice, sizes: Mapping[str, tuple[int, DTypeLike]]) -> None:
        """Takes how many numbers of which type each has, by name.

        Raises:
            DeviceError: There is not as much memory.
        """
        places: dict[str, int] = {}
        end = 0
        for name, (count, dtype) in sizes.items():
            places[name] = end
            end += aligned(count * np.dtype(dtype).itemsize)
        self._staged = Staged(device, end)
        self.arrays = {
            name: self._staged.array(places[name], count, dtype)
            for name, (count, dtype) in sizes.items()
        }
        self.addresses = {name: self._staged.address(place) for name, place in places.items()}
        self.copy = self._staged.copy(end)
        for array in self.arrays.values():
            array[...] = 0

    def free(self) -> None:
        """Gives the memory back; nothing may be using it. Twice is once."""
        self.arrays = {}
        self._staged.free()


def aligned(num_bytes: int) -> int:
    """As much as it takes so that what follows is aligned."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
