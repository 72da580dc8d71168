"""What engines need of CUDA, as one Protocol: streams, events, buffers, copies, graphs.

Engines know addresses and streams, never which binding made them. A device belongs to whoever
opened it; everything made by it dies with it. Calls may come from any thread: an implementation
makes its context current where that is needed. Errors of the driver become DeviceError, and
DeviceLostError where the context cannot compute any more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "CudaBuffer",
    "CudaDevice",
    "CudaEvent",
    "CudaGraph",
    "CudaInfo",
    "CudaStream",
    "DeviceMemory",
    "PinnedBuffer",
]


@dataclass(frozen=True, slots=True)
class CudaInfo:
    """What a device is.

    Attributes:
        name: As its driver says, for example "NVIDIA H100 80GB HBM3".
        compute_capability: Major and minor, (9, 0) for sm90.
        driver_version: CUDA version of the driver, for example "13.0".
        has_graphs: Whether this binding can capture and replay graphs.
        binding: What drives it, for example "cuda-core 1.2.2".
    """

    name: str
    compute_capability: tuple[int, int]
    driver_version: str
    has_graphs: bool
    binding: str


class DeviceMemory(NamedTuple):
    """Bytes of a device's memory."""

    free: int
    total: int


class CudaBuffer(Protocol):
    """Memory of the device."""

    @property
    def address(self) -> int:
        """Where it begins, aligned to at least 256 bytes."""
        ...

    @property
    def num_bytes(self) -> int:
        """Its size."""
        ...

    def free(self) -> None:
        """Gives it back; nothing may be using it. Twice is once."""
        ...


class PinnedBuffer(Protocol):
    """Page-locked memory of the host, from and to which copies are asynchronous."""

    @property
    def address(self) -> int:
        """Where it begins."""
        ...

    @property
    def num_bytes(self) -> int:
        """Its size."""
        ...

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        """The first bytes as an array that shares them."""
        ...

    def free(self) -> None:
        """Gives it back; no copy may be running, no array in use. Twice is once."""
        ...


class CudaEvent(Protocol):
    """A point in a stream's work."""

    @property
    def is_done(self) -> bool:
        """Whether the work before it is done; True before it was ever recorded."""
        ...

    def synchronize(self) -> None:
        """Waits, without keeping a processor busy or the interpreter locked.

        Raises:
            DeviceError: The work before it failed.
        """
        ...


class CudaStream(Protocol):
    """Work that the device does in order."""

    @property
    def handle(self) -> int:
        """The driver's own handle, which other libraries take."""
        ...

    def record(self, event: CudaEvent) -> None:
        """Places the event behind what was enqueued so far."""
        ...

    def wait_for(self, event: CudaEvent) -> None:
        """Lets what is enqueued from now on wait for the event, on the device."""
        ...

    def synchronize(self) -> None:
        """Waits for everything enqueued.

        Raises:
            DeviceError: Some of it failed.
        """
        ...


class CudaGraph(Protocol):
    """Captured work, launched as one."""

    def launch(self, stream: CudaStream) -> None:
        """Enqueues it all."""
        ...

    def close(self) -> None:
        """Releases it; no launch may be running. Twice is once."""
        ...


class CudaDevice(Protocol):
    """One device, opened in this process."""

    @property
    def info(self) -> CudaInfo:
        """What it is."""
        ...

    def stream(self) -> CudaStream:
        """A new stream, none of which waits for the default one."""
        ...

    def event(self) -> CudaEvent:
        """A new event, without timing."""
        ...

    def allocate(self, num_bytes: int) -> CudaBuffer:
        """Memory of the device, of undefined content.

        Raises:
            DeviceError: There is not as much; the message says how much there is.
        """
        ...

    def allocate_pinned(self, num_bytes: int) -> PinnedBuffer:
        """Page-locked memory of the host, of undefined content."""
        ...

    def copy_to_device(self, target: int, source: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues a copy from pinned host memory to the device, by addresses."""
        ...

    def copy_to_host(self, target: int, source: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues a copy from the device to pinned host memory, by addresses."""
        ...

    def copy_on_device(self, target: int, source: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues a copy between two places of the device that do not overlap."""
        ...

    def fill(self, target: int, byte: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues setting every byte."""
        ...

    def capture(self, stream: CudaStream, enqueue: Callable[[], None]) -> CudaGraph:
        """Captures what `enqueue` enqueues on the stream, without running it.

        Raises:
            UnsupportedError: This binding has no graphs (`info.has_graphs`).
            DeviceError: Something in it cannot be captured; the stream works as before.
        """
        ...

    def memory(self) -> DeviceMemory:
        """How much there is now."""
        ...

    def check(self) -> None:
        """Finds out an error that stays until the process ends.

        Raises:
            DeviceLostError: The context is lost.
        """
        ...

    def close(self) -> None:
        """Releases what was made; nothing may be running. Twice is once."""
        ...
