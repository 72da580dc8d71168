"""Which target has which precision for which task: the one table of it."""

from collections.abc import Mapping, Sequence

from enginehouse_server.engine.base import Precision
from enginehouse_server.engine.gpus import PLAN_CAPABILITIES

__all__ = [
    "PLAN_BACKENDS",
    "PRECISIONS",
    "arithmetic_of",
    "capabilities_of",
    "obstacle_to",
    "precisions_for",
    "retry_of",
]

PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16", "fp16", "int8", "int4", "fp8")
PLAN_BACKENDS = ("tensorrt", "tensorrt-rtx")

_CPU: tuple[Precision, ...] = ("fp32", "bf16", "int8")
_GRAPH: tuple[Precision, ...] = (
    "fp32",
    "bf16",
    "fp16",
    "int8",
)  # ONNX Runtime; bf16 by its CUDA provider alone
_PLAN: tuple[Precision, ...] = ("fp32", "tf32", "bf16", "fp16", "int8")
_TABLE: Mapping[str, Mapping[str, Sequence[Precision]]] = {
    "openvino": {"classify": _CPU, "generate": (*_CPU, "int4")},
    "onnxruntime": {"classify": _GRAPH, "generate": (*_GRAPH, "int4")},
    # A decoder's int8 and int4 are its weights alone; fp8 takes the scales of calibrated layers.
    "tensorrt": {"classify": (*_PLAN, "fp8"), "generate": (*_PLAN, "int4")},
    "tensorrt-rtx": {"classify": (*_PLAN, "fp8"), "generate": (*_PLAN, "int4")},
}
# The first GPUs that compute in it; older ones have no such arithmetic.
_LEAST_CAPABILITY: Mapping[Precision, int] = {
    "fp32": 80,
    "tf32": 80,
    "bf16": 80,
    "int4": 80,
    "fp8": 89,
}
_ANY = 1 << 10  # a plan for any GPU is one for those that have the precision
_NARROW = ("int8", "int4", "fp8")
_NO_FP8 = (
    "whose activations are not calibrated, as a product in fp8 needs (int8 and int4 round weights "
    "alone, to as few bits or fewer)"
)


def precisions_for(backend: str, task: str | None) -> tuple[Precision, ...]:
    """What a backend has for a task, or for any task."""
    tasks = _TABLE[backend]
    found = tasks[task] if task else [p for known in tasks.values() for p in known]
    return tuple(p for p in PRECISIONS if p in found)


def capabilities_of(backend: str) -> tuple[str, ...]:
    """The compute capabilities that a backend's plans can be for; none if it has no plans."""
    return PLAN_CAPABILITIES.get(backend, ())


def obstacle_to(
    backend: str, capabilities: Sequence[str], precision: Precision, task: str | None
) -> str:
    """Why there is no such engine, and what there is instead; empty if there is one.

    Args:
        backend: A known one.
        capabilities: Of the GPUs that a plan is for; none of other backends.
        precision: Of the engine.
        task: None while it is not known.
    """
    allowed = precisions_for(backend, task)
    if precision not in allowed:
        kind = {"classify": " for classifiers", "generate": " for decoders", None: ""}[task]
        why = f", {_NO_FP8}" if (precision, task) == ("fp8", "generate") else ""
        return f"{backend} has no {precision}{kind}{why}: use {_listed(allowed)}"
    least = _LEAST_CAPABILITY.get(precision, 0)
    too_old = [c for c in capabilities if _number(c) < least]
    if not too_old:
        return ""
    also = [p for p in allowed if all(_number(c) >= _LEAST_CAPABILITY.get(p, 0) for c in too_old)]
    able = [c for c in capabilities_of(backend) if _number(c) >= least]
    return (
        f"{precision} needs a GPU of sm{least} or newer, and this is {_listed(too_old)}: use "
        f"{_listed(also)}, or {backend}:{','.join(able)}"
    )


def arithmetic_of(precision: Precision, *, is_typed: bool) -> Precision:
    """What an engine computes in where its weights are narrower.

    Args:
        precision: Of the engine.
        is_typed: Whether it computes in the graph's own types, so that they decide.
    """
    if precision == "tf32":
        return "fp32"
    if precision in _NARROW:
        return "fp16" if is_typed else "fp32"
    return precision


def retry_of(
    backend: str, capabilities: Sequence[str], precision: Precision, task: str
) -> Precision | None:
    """The precision to try where an engine does not keep its certificate; None for none.

    What overflows in fp16 (greatest number 65504) has room in bf16.
    """
    if precision != "fp16" or obstacle_to(backend, capabilities, "bf16", task):
        return None
    return "bf16"


def _number(capability: str) -> int:
    digits = capability.removeprefix("sm")
    return int(digits) if digits.isdigit() else _ANY


def _listed(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else "nothing"
