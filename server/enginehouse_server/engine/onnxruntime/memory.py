"""Memory that a session computes on: the host's own, or a GPU's with copies to and fro.

Everything is in the order of one stream: what is enqueued later sees what was enqueued before, and
the host sees what it waited for. On the host all of it is done at once.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from enginehouse_server.engine.cuda import CudaBuffer, CudaDevice, CudaStream, PinnedBuffer
from enginehouse_server.engine.cuda.host import array_at

__all__ = ["CudaMemory", "HostMemory", "Memory", "Planes", "Shared"]

_ALIGNMENT = 64  # bytes: a cache line, and the widest register


class Planes(NamedTuple):
    """The first bytes of each of several equal parts that lie behind each other."""

    num_planes: int
    pitch: int
    num_bytes: int


class Shared(Protocol):
    """Bytes that the host and a session exchange."""

    @property
    def address(self) -> int:
        """Where the session has them."""
        ...

    def array(
        self, shape: tuple[int, ...], dtype: DTypeLike, offset: int = 0
    ) -> NDArray[np.generic]:
        """Some of the host's, from a first byte on, as an array that shares them."""
        ...

    def upload(self, num_bytes: int) -> None:
        """Enqueues giving the first of the host's bytes to the session."""
        ...

    def download(self, num_bytes: int, offset: int = 0) -> None:
        """Enqueues giving some of the session's bytes to the host, from a first one on."""
        ...

    def wait(self) -> None:
        """Waits until the downloads are done.

        Raises:
            DeviceError: It, or what was enqueued before it, failed.
        """
        ...


class Memory(Protocol):
    """Where a session's tensors are."""

    @property
    def is_host(self) -> bool:
        """Whether the host can read and write at its addresses."""
        ...

    def share(self, num_bytes: int) -> Shared:
        """Bytes to exchange, of undefined content."""
        ...

    def reserve(self, num_bytes: int) -> int:
        """Bytes of the session's alone, zeros; gives their address."""
        ...

    def copy(self, target: int, source: int, planes: Planes) -> None:
        """Enqueues copying planes, and perhaps what is between them."""
        ...

    def clear(self, target: int, planes: Planes) -> None:
        """Enqueues zeros in planes, and perhaps between them."""
        ...

    def close(self) -> None:
        """Gives all of it back; nothing may be computing on it."""
        ...


class HostMemory:
    """The host's own memory; the kernel gives it as it is first written."""

    is_host = True

    def __init__(self) -> None:
        self._arrays: dict[int, NDArray[np.uint8]] = {}

    def share(self, num_bytes: int) -> Shared:
        """Bytes to exchange, of undefined content."""
        return _HostShared(self.reserve(num_bytes), num_bytes)

    def reserve(self, num_bytes: int) -> int:
        """Bytes of the session's alone, zeros; gives their address."""
        array = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
        address: int = array.ctypes.data + -array.ctypes.data % _ALIGNMENT
        self._arrays[address] = array
        return address

    def copy(self, target: int, source: int, planes: Planes) -> None:
        """Copies planes."""
        _planes(target, planes)[:] = _planes(source, planes)

    def clear(self, target: int, planes: Planes) -> None:
        """Puts zeros into planes."""
        _planes(target, planes)[:] = 0

    def close(self) -> None:
        """Gives all of it back."""
        self._arrays.clear()


class CudaMemory:
    """Memory of a CUDA device, in the order of a stream of its own.

    Attributes:
        stream: The stream's handle, for the session to compute in.
    """

    is_host = False

    def __init__(self, device: CudaDevice) -> None:
        """Takes a device, which it does not close."""
        self._device, self._stream = device, device.stream()
        self.stream = self._stream.handle
        self._buffers: list[CudaBuffer | PinnedBuffer] = []

    def share(self, num_bytes: int) -> Shared:
        """Bytes to exchange, of undefined content: page-locked ones of the host, and a copy."""
        pinned = self._device.allocate_pinned(max(1, num_bytes))
        self._buffers.append(pinned)
        return _CudaShared(self._device, self._stream, pinned, self.reserve(num_bytes))

    def reserve(self, num_bytes: int) -> int:
        """Bytes of the session's alone, zeros; gives their address."""
        buffer = self._device.allocate(max(1, num_bytes))
        self._buffers.append(buffer)
        self._device.fill(buffer.address, 0, buffer.num_bytes, self._stream)
        return buffer.address

    def copy(self, target: int, source: int, planes: Planes) -> None:
        """Enqueues copying planes with what is between them: one copy costs less than many."""
        num_bytes = planes.num_planes * planes.pitch
        self._device.copy_on_device(target, source, num_bytes, self._stream)

    def clear(self, target: int, planes: Planes) -> None:
        """Enqueues zeros in planes and between them."""
        self._device.fill(target, 0, planes.num_planes * planes.pitch, self._stream)

    def close(self) -> None:
        """Gives all of it back."""
        for buffer in self._buffers:
            buffer.free()
        self._buffers.clear()


class _HostShared:
    def __init__(self, address: int, num_bytes: int) -> None:
        self.address, self._num_bytes = address, num_bytes

    def array(
        self, shape: tuple[int, ...], dtype: DTypeLike, offset: int = 0
    ) -> NDArray[np.generic]:
        return array_at(self.address + offset, self._num_bytes - offset, shape, dtype)

    def upload(self, num_bytes: int) -> None:
        pass

    def download(self, num_bytes: int, offset: int = 0) -> None:
        pass

    def wait(self) -> None:
        pass


class _CudaShared:
    def __init__(
        self, device: CudaDevice, stream: CudaStream, pinned: PinnedBuffer, address: int
    ) -> None:
        self._device, self._stream, self._pinned = device, stream, pinned
        self.address, self._arrived = address, device.event()

    def array(
        self, shape: tuple[int, ...], dtype: DTypeLike, offset: int = 0
    ) -> NDArray[np.generic]:
        address, num_bytes = self._pinned.address + offset, self._pinned.num_bytes - offset
        return array_at(address, num_bytes, shape, dtype)

    def upload(self, num_bytes: int) -> None:
        if num_bytes:
            self._device.copy_to_device(self.address, self._pinned.address, num_bytes, self._stream)

    def download(self, num_bytes: int, offset: int = 0) -> None:
        if num_bytes:
            self._device.copy_to_host(
                self._pinned.address + offset, self.address + offset, num_bytes, self._stream
            )
        self._stream.record(self._arrived)

    def wait(self) -> None:
        self._arrived.synchronize()


def _planes(address: int, planes: Planes) -> NDArray[np.generic]:
    whole = planes.num_planes * planes.pitch
    array = array_at(address, whole, (planes.num_planes, planes.pitch), np.uint8)
    return array[:, : planes.num_bytes]
