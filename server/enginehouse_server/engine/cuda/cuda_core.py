"""CUDA by NVIDIA's own packages: cuda-core for its objects, cuda-bindings for what goes by address.

The device's primary context is used, which is also that of ONNX Runtime, TensorRT and torch, so
that addresses and streams are good in all of them. It is made current in each thread that calls.
Waits sleep: events are made so, and the context is asked to before it begins.
"""

# The binding's types are not pyright's.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
# pyright: reportOptionalMemberAccess=false

import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import numpy as np
from cuda.bindings import driver
from cuda.core import Device, Event, EventOptions, Stream, __version__
from cuda.core.graph import Graph
from numpy.typing import DTypeLike, NDArray

from enginehouse_server.errors import DeviceError, PlanMismatchError

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
from .host import array_at, ignore_captures_elsewhere

__all__ = ["CudaCoreDevice"]

_log = logging.getLogger(__name__)
_CAPTURE_MODE = "thread_local"  # what other threads do meanwhile is not captured, and no error


class CudaCoreDevice:
    """A device by cuda-core."""

    def __init__(self, index: int) -> None:
        """Opens it, and makes its primary context current here.

        Raises:
            PlanMismatchError: There is no such device.
            DeviceError: The driver failed.
        """
        self._index = index
        self._here = threading.local()
        with reported("starting the driver"):
            _call(driver.cuInit(0))
            [count] = _call(driver.cuDeviceGetCount())
        if not 0 <= index < count:
            raise PlanMismatchError(
                f"this machine has {count} CUDA devices, and device {index} is asked for: see "
                "nvidia-smi and CUDA_VISIBLE_DEVICES"
            )
        with reported("opening the device"):
            _let_waits_sleep(index)
            self.enter()
            device = Device(index)
            major, minor = device.compute_capability
            [version] = _call(driver.cuDriverGetVersion())  # 1000 * major + 10 * minor
            self._info = CudaInfo(
                name=device.name,
                compute_capability=(major, minor),
                driver_version=f"{version // 1000}.{version % 1000 // 10}",
                has_graphs=True,
                binding=f"cuda-core {__version__}",
            )
        self._made: weakref.WeakSet[_Closable] = weakref.WeakSet()
        self._probe_stream, self._probe_event = self.stream(), self.event()

    @property
    def info(self) -> CudaInfo:
        """What it is."""
        return self._info

    def enter(self) -> Device:
        """Makes the context current in this thread, once, and gives the thread's own object."""
        device: Device | None = getattr(self._here, "device", None)
        if device is None:
            device = Device(self._index)
            device.set_current()
            ignore_captures_elsewhere()
            self._here.device = device
        return device

    def stream(self) -> CudaStream:
        """A new stream, none of which waits for the default one."""
        with reported("making a stream"):
            return _Stream(self, self.enter().create_stream(), self.event())

    def event(self) -> CudaEvent:
        """A new event, without timing."""
        with reported("making an event"):
            return _Event(self, self.enter().create_event(EventOptions(blocking_sync=True)))

    def allocate(self, num_bytes: int) -> CudaBuffer:
        """Memory of the device, of undefined content.

        Raises:
            DeviceError: There is not as much; the message says how much there is.
        """
        self.enter()
        try:
            [address] = _call(driver.cuMemAlloc(num_bytes))
        except Exception as error:
            raise refused_memory(num_bytes, error, self.memory) from error
        buffer = _Buffer(self, address, num_bytes)
        self._made.add(buffer)
        return buffer

    def allocate_pinned(self, num_bytes: int) -> PinnedBuffer:
        """Page-locked memory of the host, of undefined content."""
        self.enter()
        with reported(f"locking {num_bytes} bytes of host memory"):
            [address] = _call(driver.cuMemHostAlloc(num_bytes, 0))
        buffer = _Pinned(self, address, num_bytes)
        self._made.add(buffer)
        return buffer

    def copy_to_device(self, target: int, source: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues a copy from pinned host memory to the device, by addresses."""
        self.enter()
        with reported("copying to the device"):
            _call(driver.cuMemcpyHtoDAsync(target, source, num_bytes, stream.handle))

    def copy_to_host(self, target: int, source: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues a copy from the device to pinned host memory, by addresses."""
        self.enter()
        with reported("copying to the host"):
            _call(driver.cuMemcpyDtoHAsync(target, source, num_bytes, stream.handle))

    def copy_on_device(self, target: int, source: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues a copy between two places of the device that do not overlap."""
        self.enter()
        with reported("copying on the device"):
            _call(driver.cuMemcpyDtoDAsync(target, source, num_bytes, stream.handle))

    def fill(self, target: int, byte: int, num_bytes: int, stream: CudaStream) -> None:
        """Enqueues setting every byte."""
        self.enter()
        with reported("filling memory of the device"):
            _call(driver.cuMemsetD8Async(target, byte, num_bytes, stream.handle))

    def capture(self, stream: CudaStream, enqueue: Callable[[], None]) -> CudaGraph:
        """Captures what `enqueue` enqueues on the stream, without running it.

        Raises:
            DeviceError: Something in it cannot be captured; the stream works as before.
        """
        assert isinstance(stream, _Stream), "a stream of this binding"
        self.enter()
        with reported("capturing a graph"):
            builder = stream.own.create_graph_builder().begin_building(_CAPTURE_MODE)
            try:
                try:
                    enqueue()
                except BaseException:
                    with suppress(Exception):  # the first failure is the one to tell of
                        builder.end_building()
                    raise
                graph = _Graph(self, builder.end_building().complete())
            finally:
                builder.close()
        self._made.add(graph)
        return graph

    def memory(self) -> DeviceMemory:
        """How much there is now."""
        self.enter()
        with reported("asking for the device's memory"):
            free, total = _call(driver.cuMemGetInfo())
            return DeviceMemory(free, total)

    def check(self) -> None:
        """Finds out an error that stays until the process ends.

        Raises:
            DeviceLostError: The context is lost.
        """
        stream, event = self._probe_stream, self._probe_event  # neither has to be waited for
        probe(lambda: stream.record(event), lambda: event.is_done, self.memory)

    def close(self) -> None:
        """Releases what was made; nothing may be running. Twice is once."""
        for made in list(self._made):
            with suppress(DeviceError):  # of a lost context, whose memory goes with the process
                made.free()
        self._made.clear()


class _Closable(Protocol):
    def free(self) -> None: ...


class _Stream:
    def __init__(self, device: CudaCoreDevice, own: Stream, end: CudaEvent) -> None:
        self._device, self.own, self._end = device, own, end

    @property
    def handle(self) -> int:
        return int(self.own.handle)

    def record(self, event: CudaEvent) -> None:
        assert isinstance(event, _Event), "an event of this binding"
        self._device.enter()
        with reported("recording an event"):
            self.own.record(event.own)

    def wait_for(self, event: CudaEvent) -> None:
        assert isinstance(event, _Event), "an event of this binding"
        self._device.enter()
        with reported("waiting for an event on the device"):
            self.own.wait(event.own)

    def synchronize(self) -> None:
        self.record(self._end)
        self._end.synchronize()


class _Event:
    def __init__(self, device: CudaCoreDevice, own: Event) -> None:
        self._device, self.own = device, own

    @property
    def is_done(self) -> bool:
        self._device.enter()
        with reported("asking for an event"):
            return bool(self.own.is_done)

    def synchronize(self) -> None:
        self._device.enter()
        with reported("computing"):
            self.own.sync()


class _Buffer:
    def __init__(self, device: CudaCoreDevice, address: int, num_bytes: int) -> None:
        self._device, self.address, self.num_bytes = device, address, num_bytes
        self._is_free = False

    def free(self) -> None:
        if not self._is_free:
            self._is_free = True
            self._device.enter()
            with reported("freeing memory of the device"):
                self._release()

    def _release(self) -> None:
        _call(driver.cuMemFree(self.address))


class _Pinned(_Buffer):
    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        return array_at(self.address, self.num_bytes, shape, dtype)

    def _release(self) -> None:
        _call(driver.cuMemFreeHost(self.address))


class _Graph:
    def __init__(self, device: CudaCoreDevice, own: Graph) -> None:
        self._device, self._own = device, own

    def launch(self, stream: CudaStream) -> None:
        assert isinstance(stream, _Stream), "a stream of this binding"
        self._device.enter()
        with reported("launching a graph"):
            self._own.launch(stream.own)

    def close(self) -> None:
        self._own.close()

    free = close


class _DriverError(Exception):
    """A call's result, by name and in the driver's words."""


def _call(outcome: tuple[object, ...]) -> list[int]:
    """What a call of the driver gives beside its result: numbers, addresses, handles.

    Raises:
        _DriverError: Its result is none of success.
    """
    result, *values = outcome
    if result != driver.CUresult.CUDA_SUCCESS:
        _, words = driver.cuGetErrorString(result)
        text = words.decode() if isinstance(words, bytes) else "unknown to this driver"
        raise _DriverError(f"{getattr(result, 'name', result)}: {text}")
    return [int(value) for value in values]  # type: ignore[call-overload]


def _let_waits_sleep(index: int) -> None:
    """Asks for waits that sleep, also those of runtimes; too late if the context is in use."""
    try:
        [ordinal] = _call(driver.cuDeviceGet(index))
        flags = driver.CUctx_flags.CU_CTX_SCHED_BLOCKING_SYNC
        _call(driver.cuDevicePrimaryCtxSetFlags(ordinal, int(flags)))
    except _DriverError as error:
        _log.debug("the context keeps its way of waiting: %s", error)
