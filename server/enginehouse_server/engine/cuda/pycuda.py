"""CUDA by pycuda, for those whose own code uses it: no graphs, and a context that is lent out.

pycuda ends the process of a thread that leaves a context on its stack, so each call pushes the
device's primary context and pops it again. It cannot be imported on a machine without a driver.
"""

# The binding's types are not pyright's.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
# pyright: reportOptionalMemberAccess=false

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pycuda
from numpy.typing import DTypeLike, NDArray
from pycuda import driver

from enginehouse_server.errors import DeviceError, PlanMismatchError, UnsupportedError

from .base import (
    CudaBuffer,
    CudaEvent,
    CudaGraph,
    CudaInfo,
    CudaStream,
    DeviceMemory,
    PinnedBuffer,
)
from .errors import probe, refused_memory, reported
from .host import array_at, bytes_at, ignore_captures_elsewhere

__all__ = ["PycudaDevice"]

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, which pycuda takes and has no name for


class PycudaDevice:
    """A device by pycuda."""

    def __init__(self, index: int) -> None:
        """Opens it, and retains its primary context.

        Raises:
            PlanMismatchError: There is no such device.
            DeviceError: The driver failed.
        """
        with reported("starting the driver"):
            driver.init()
            count = driver.Device.count()
        if not 0 <= index < count:
            raise PlanMismatchError(
                f"this machine has {count} CUDA devices, and device {index} is asked for: see "
                "nvidia-smi and CUDA_VISIBLE_DEVICES"
            )
        with reported("opening the device"):
            device = driver.Device(index)
            self._context: driver.Context | None = device.retain_primary_context()
            major, minor = device.compute_capability()
            version = int(driver.get_driver_version())  # 1000 * major + 10 * minor
            self._info = CudaInfo(
                name=device.name(),
                compute_capability=(major, minor),
                driver_version=f"{version // 1000}.{version % 1000 // 10}",
                has_graphs=False,
                binding=f"pycuda {pycuda.VERSION_TEXT}",
            )
        self._made: weakref.WeakSet[_Buffer | _Pinned] = weakref.WeakSet()
        self._current = threading.local()
        self._probe_stream, self._probe_event = self.stream(), self.event()

    @property
    def info(self) -> CudaInfo:
        """What it is."""
        return self._info

    @contextmanager
    def entered(self, doing: str) -> Iterator[None]:
        """Has the context current within; errors of the driver are raised as ours."""
        depth = getattr(self._current, "depth", 0)
        with reported(doing):
            if not depth:
                assert self._context is not None, "the device is closed"
                self._context.push()
                if not hasattr(self._current, "depth"):
                    ignore_captures_elsewhere()
            self._current.depth = depth + 1
            try:
                yield
            finally:
                self._current.depth = depth
                if not depth:
                    driver.Context.pop()

    def stream(self) -> CudaStream:
        """A new stream, none of which waits for the default one."""
        with self.entered("making a stream"):
            return _Stream(self, driver.Stream(_NON_BLOCKING), self.event())

    def event(self) -> CudaEvent:
        """A new event, without timing."""
        flags = driver.event_flags
        with self.entered("making an event"):
            return _Event(self, driver.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING))

    def allocate(self, num_bytes: int) -> CudaBuffer:
        """Memory of the device, of undefined content.

        Raises:
            DeviceError: There is not as much; the message says how much there is.
        """
        with self.entered("allocating on the device"):
            try:
                buffer = _Buffer(self, driver.mem_alloc(num_bytes), num_bytes)
            except driver.Error as error:
                raise refused_memory(num_bytes, error, self.memory) from error
        self._made.add(buffer)
        return buffer

    def allocate_pinned(self, num_bytes: int) -> PinnedBuffer:
        """Page-locked memory of the host, of undefined content."""
        with self.entered(f"locking {num_bytes} bytes of host memory"):
            buffer = _Pinned(self, driver.pagelocked_empty(num_bytes, np.uint8), num_bytes)
        self._made.add(buffer)
        return buffer

    def copy_to_device(self, target: int, source: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues a copy from pinned host memory to the device, by addresses."""
        with self.entered("copying to the device"):
            driver.memcpy_htod_async(target, bytes_at(source, num_bytes), _own(stream))

    def copy_to_host(self, target: int, source: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues a copy from the device to pinned host memory, by addresses."""
        with self.entered("copying to the host"):
            driver.memcpy_dtoh_async(bytes_at(target, num_bytes), source, _own(stream))

    def copy_on_device(self, target: int, source: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues a copy between two places of the device that do not overlap."""
        with self.entered("copying on the device"):
            driver.memcpy_dtod_async(target, source, num_bytes, _own(stream))

    def fill(self, target: int, byte: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues setting every byte."""
        with self.entered("filling memory of the device"):
            driver.memset_d8_async(target, byte, num_bytes, _own(stream))

    def capture(self, stream: CudaStream, enqueue: Callable[[], None]) -> CudaGraph:
        """Refuses: pycuda has no graphs.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            "pycuda has no CUDA graphs: steps are launched kernel by kernel; for graphs serve with "
            "--cuda-binding cuda-core"
        )

    def memory(self) -> DeviceMemory:
        """How much there is now."""
        with self.entered("asking for the device's memory"):
            free, total = driver.mem_get_info()
            return DeviceMemory(int(free), int(total))

    def check(self) -> None:
        """Finds out an error that stays until the process ends.

        Raises:
            DeviceLostError: The context is lost.
        """
        stream, event = self._probe_stream, self._probe_event  # neither has to be waited for
        probe(lambda: stream.record(event), lambda: event.is_done, self.memory)

    def close(self) -> None:
        """Releases what was made, and the context; nothing may be running. Twice is once."""
        if self._context is None:
            return
        for made in list(self._made):
            with suppress(DeviceError):  # of a lost context, whose memory goes with the process
                made.free()
        self._made.clear()
        self._context = None  # released with its last user


class _Stream:
    def __init__(self, device: PycudaDevice, own: driver.Stream, end: CudaEvent) -> None:
        self._device, self.own, self._end = device, own, end

    @property
    def handle(self) -> int:
        return int(self.own.handle)

    def record(self, event: CudaEvent) -> None:
        assert isinstance(event, _Event), "an event of this binding"
        with self._device.entered("recording an event"):
            event.own.record(self.own)

    def wait_for(self, event: CudaEvent) -> None:
        assert isinstance(event, _Event), "an event of this binding"
        with self._device.entered("waiting for an event on the device"):
            self.own.wait_for_event(event.own)

    def synchronize(self) -> None:
        self.record(self._end)
        self._end.synchronize()


class _Event:
    def __init__(self, device: PycudaDevice, own: driver.Event) -> None:
        self._device, self.own = device, own

    @property
    def is_done(self) -> bool:
        with self._device.entered("asking for an event"):
            return bool(self.own.query())

    def synchronize(self) -> None:
        with self._device.entered("computing"):
            self.own.synchronize()


class _Buffer:
    def __init__(self, device: PycudaDevice, own: driver.DeviceAllocation, num_bytes: int) -> None:
        self._device, self._own = device, own
        self.address, self.num_bytes = int(own), num_bytes
        self._is_free = False

    def free(self) -> None:
        if not self._is_free:
            self._is_free = True
            with self._device.entered("freeing memory of the device"):
                self._own.free()


class _Pinned:
    def __init__(self, device: PycudaDevice, own: NDArray[np.uint8], num_bytes: int) -> None:
        self._device, self._own = device, own
        self.address, self.num_bytes = int(own.ctypes.data), num_bytes
        self._is_free = False

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        return array_at(self.address, self.num_bytes, shape, dtype)

    def free(self) -> None:
        if not self._is_free:
            self._is_free = True
            with self._device.entered("freeing host memory"):
                self._own.base.free()  # type: ignore[union-attr]


def _own(stream: CudaStream) -> driver.Stream:
    assert isinstance(stream, _Stream), "a stream of this binding"
    return stream.own
