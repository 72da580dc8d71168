"""What can be built on this machine: which runtimes are installed, and which GPU it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BACKENDS", "Host"]

BACKENDS = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")  # the better come first


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
