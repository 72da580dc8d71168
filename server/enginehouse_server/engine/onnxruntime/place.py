"""Where sessions compute: on the processor, or on a GPU by ONNX Runtime's provider for CUDA.

All that differs between the two is said here: provider, memory, types, and what is done about a
fault. Engines are the same on both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from enginehouse_server.engine.base import Precision
from enginehouse_server.engine.cuda import CudaDevice, DeviceMemory, open_device
from enginehouse_server.engine.cuda.errors import device_error
from enginehouse_server.engine.decoder import CachePrecision
from enginehouse_server.engine.device import Device
from enginehouse_server.errors import DeviceError, DeviceLostError, PlanMismatchError

from .device import CPU, CUDA, check_installed, computes_on_cuda, describe_device, describe_gpu
from .elements import BF16, FP16, FP32, Element
from .memory import CudaMemory, HostMemory, Memory

__all__ = ["Place", "cpu_place", "cuda_place", "open_place"]

_ARITHMETIC: tuple[Precision, ...] = ("fp32", "tf32", "bf16", "fp16")
_HALF: tuple[Literal["fp16"], Literal["bf16"]] = ("fp16", "bf16")


class _Gpu(Protocol):
    def check(self) -> None: ...
    def memory(self) -> DeviceMemory: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session computes.

    Attributes:
        device: What it is.
        provider: ONNX Runtime's name of what computes there.
        device_type: ONNX Runtime's name of its memory.
        memory: Its memory.
        grouped: Types that its GroupQueryAttention takes.
        precisions: What it computes in.
        cache_precisions: What cached keys and values are of.
        options: Of the provider.
        has_graphs: Whether it can capture and replay what it launches.
        gpu: What is closed with it, and asked after a fault; None on a processor.
        without: Names of ONNX Runtime's own optimizers that are left out.
    """

    device: Device
    provider: str
    device_type: str
    memory: Memory
    grouped: frozenset[Element]
    precisions: frozenset[Precision]
    cache_precisions: frozenset[CachePrecision]
    options: Mapping[str, str] = field(default_factory=dict)
    has_graphs: bool = False
    gpu: _Gpu | None = None
    without: tuple[str, ...] = ()

    def check_precision(self, precision: Precision, weights: Sequence[Precision]) -> None:
        """Raises PlanMismatchError for arithmetic that there is not here.

        Args:
            precision: Asked for.
            weights: What weights can be in that are narrower than what is computed in.
        """
        if precision in self.precisions or precision in weights:
            return
        known: list[str] = [p for p in _ARITHMETIC if p in self.precisions]
        *others, last = known + list(weights)
        raise PlanMismatchError(
            f"ONNX Runtime does not compute in {precision} on "
            f"{'a processor' if self.gpu is None else self.device.name}; build the model with "
            f"PRECISION={', '.join(others)} or {last}"
        )

    def failure(self, error: Exception, what: str) -> DeviceError:
        """The error of ours for one of a session: DeviceLostError where it says or shows that."""
        if isinstance(error, DeviceError):
            return error
        if self.gpu is not None:
            found = device_error(error, f"computing {what}")
            if isinstance(found, DeviceLostError):
                return found
            try:
                self.gpu.check()
            except DeviceLostError as lost:
                return lost
        return DeviceError(f"ONNX Runtime failed on {what}: {error}")

    def close(self) -> None:
        """Gives the memory and the device back; nothing may be computing."""
        self.memory.close()
        if self.gpu is not None:
            self.gpu.close()


def open_place(cuda_binding: str, precision: Precision) -> Place:
    """The GPU where ONNX Runtime can compute on one, else the processor.

    Raises:
        PlanMismatchError: Two packages of ONNX Runtime are installed over each other.
    """
    check_installed()
    if computes_on_cuda(cuda_binding):
        return cuda_place(open_device(cuda_binding), precision)
    return cpu_place()


def cpu_place() -> Place:
    """The processor, which has half precision in some operators alone."""
    return Place(
        device=describe_device(),
        provider=CPU,
        device_type="cpu",
        memory=HostMemory(),
        grouped=frozenset({FP32, FP16}),
        precisions=frozenset({"fp32"}),
        cache_precisions=frozenset({"fp32"}),
    )


def cuda_place(device: CudaDevice, precision: Precision) -> Place:
    """A GPU; closed with the place."""
    memory = CudaMemory(device)
    found = describe_gpu(device.info)
    halves = _HALF if found.has_bf16 else _HALF[:1]
    return Place(
        device=found,
        provider=CUDA,
        device_type="cuda",
        memory=memory,
        # contrib_ops/cuda/bert/group_query_attention.cc registers no fp32
        grouped=frozenset({FP16, BF16}),
        precisions=frozenset({"fp32", "tf32", *halves}),
        cache_precisions=frozenset({"fp32", *halves}),
        options={
            "device_id": "0",
            "user_compute_stream": str(memory.stream),
            # Products of fp32 numbers in 10 bits of mantissa are for those who ask for them.
            "use_tf32": "1" if precision == "tf32" else "0",
            "arena_extend_strategy": "kSameAsRequested",
        },
        has_graphs=True,
        gpu=device,
    )
