"""What can be built on this machine: which runtimes are installed, and which GPU it has."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from enginehouse_server.engine.machine import Machine

__all__ = ["BACKENDS", "Host"]

BACKENDS = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")  # the better come first

_EXTRAS = {"openvino": "server", "onnxruntime": "onnxruntime"}  # others are named as they are


@dataclass(frozen=True, slots=True)
class Host:
    """A machine, as far as a build has to know it.

    Attributes:
        missing: Why a runtime cannot be built for here, by backend, and what to do; those not in it
            can.
        capability: Compute capability of its GPU as "sm90"; empty if it has none.
        versions: Of the runtimes that are installed, by backend.
        has_cuda_provider: Whether ONNX Runtime computes on the GPU.
    """

    missing: Mapping[str, str]
    capability: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    has_cuda_provider: bool = False

    @classmethod
    def from_machine(cls, machine: Machine) -> "Host":
        """Of what a probe found."""
        gpu = machine.gpu
        return cls(
            missing=dict(_missing(machine)),
            capability=gpu.compute_capability if gpu else "",
            versions={backend: machine.runtime(backend).version for backend in BACKENDS},
            has_cuda_provider=machine.has_cuda_provider,
        )


def _missing(machine: Machine) -> Iterator[tuple[str, str]]:
    for backend in BACKENDS:
        runtime = machine.runtime(backend)
        if not runtime.version and not runtime.fault:
            extra = _EXTRAS.get(backend, backend)
            yield backend, f"{backend} is not installed: pip install 'enginehouse[{extra}]'"
        elif runtime.fault:
            yield backend, f"{backend} cannot be used: {runtime.fault}"
