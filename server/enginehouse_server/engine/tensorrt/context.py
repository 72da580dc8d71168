"""An execution context, told only what has changed since it was last used."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol, TypeVar

from enginehouse_server.engine.cuda import CudaStream
from enginehouse_server.errors import DeviceError

from .failure import failed
from .flavour import Handle

__all__ = ["Binding", "PlanContext"]

T = TypeVar("T")


class _Context(Protocol):
    """What is used of TensorRT's IExecutionContext."""

    def set_device_memory(self, memory: int, size: int) -> None: ...
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def infer_shapes(self) -> list[str]: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...
    def is_stream_capturable(self, stream: int) -> bool: ...


class Binding(NamedTuple):
    """All that a run of a plan depends on, but for what is in its memory.

    Attributes:
        profile: Index in the plan.
        shapes: Of every input.
        addresses: On the device, of every input and output.
    """

    profile: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    addresses: tuple[tuple[str, int], ...]


class PlanContext:
    """One run at a time; belongs to one thread."""

    def __init__(self, own: _Context, complaints: Handle, *, compiles_here: bool = False) -> None:
        """Takes TensorRT's own context.

        Args:
            own: Used by this alone.
            complaints: What TensorRT says when it refuses.
            compiles_here: Whether it compiles kernels where it runs, as TensorRT for RTX does.
        """
        self._own, self._complaints, self._compiles_here = own, complaints, compiles_here
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def use_memory(self, address: int, num_bytes: int) -> None:
        """Gives it memory of the device for activations; no other may run in it meanwhile."""
        self._own.set_device_memory(address, num_bytes)

    def bind(self, binding: Binding, stream: CudaStream) -> None:
        """Makes it ready to run.

        Raises:
            DeviceError: The plan does not take these shapes or addresses.
        """
        if binding.profile != self._profile:
            self._check(
                self._own.set_optimization_profile_async(binding.profile, stream.handle),
                f"choosing profile {binding.profile}",
            )
            self._profile = binding.profile
            self._shapes.clear()  # another profile knows none
        for name, shape in _changed(binding.shapes, self._shapes):
            self._check(self._own.set_input_shape(name, shape), f"giving {name} the shape {shape}")
            self._shapes[name] = shape
        for name, address in _changed(binding.addresses, self._addresses):
            self._check(
                self._own.set_tensor_address(name, address), f"placing {name} at {address:#x}"
            )
            self._addresses[name] = address
        if missing := self._own.infer_shapes():
            raise DeviceError(f"the plan's inputs {', '.join(missing)} have no shape or address")

    def is_capturable(self, stream: CudaStream) -> bool:
        """Whether a run as it is bound may become a part of a CUDA graph."""
        # Asked of TensorRT for RTX alone: the other has no such question.
        return not self._compiles_here or self._own.is_stream_capturable(stream.handle)

    def enqueue(self, stream: CudaStream) -> None:
        """Enqueues a run.

        Raises:
            DeviceError: TensorRT refused it.
        """
        self._check(self._own.execute_async_v3(stream.handle), "enqueuing a run of the plan")

    def _check(self, is_done: bool, doing: str) -> None:
        if not is_done:
            raise failed(self._complaints, doing)


def _changed(new: Iterable[tuple[str, T]], old: Mapping[str, T]) -> list[tuple[str, T]]:
    return [(name, value) for name, value in new if old.get(name) != value]
