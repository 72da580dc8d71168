"""What a plan is compiled for, and what came of it. Knows no runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enginehouse_server.engine.decoder import MOST_LOGITS, LayerGeometry

from .flavour import Flavour

__all__ = [
    "PlanPrecision",
    "PlanReport",
    "PlanSpec",
    "PlanTensor",
    "Profile",
    "Role",
    "TensorRange",
    "decoder_profiles",
    "slot_capacity",
]

PlanPrecision = Literal["fp32", "tf32", "bf16", "fp16", "int8", "int4", "fp8"]
Role = Literal["encode", "prefill", "decode"]

_CAPACITY_STEP = 32  # tokens: a slot's capacity is a multiple of it


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The shapes of one input in a profile."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """The shapes of all inputs that one way of running the plan takes."""

    role: Role
    inputs: tuple[TensorRange, ...]


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """What a plan is compiled from.

    Attributes:
        model: Lowered ONNX file, in the plan's types; its weights beside it.
        flavour: Which TensorRT compiles and runs it.
        compute_capabilities: Of GPUs, as "sm89"; "any" is every one that TensorRT for RTX takes,
            "current" the GPU of this machine.
        precision: Of the arithmetic.
        profiles: In the order in which the plan has them.
        num_attentions: Fused attentions that the parsed network must have.
        num_caches: Caches that it must update in place.
        optimization_level: 0 to 5: how long the compiler looks for the fastest kernels.
        workspace_bytes: Most memory of the device while it compiles; None for TensorRT's own limit.
        timing_cache: File of measured kernels, kept from one build to the next.
    """

    model: Path
    flavour: Flavour
    compute_capabilities: tuple[str, ...]
    precision: PlanPrecision
    profiles: tuple[Profile, ...]
    num_attentions: int = 0
    num_caches: int = 0
    optimization_level: int = 3
    workspace_bytes: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True)
class PlanTensor:
    """An input or output of the plan; a dynamic dimension is -1."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What came of a compilation.

    Attributes:
        flavour: Which TensorRT compiled it, the only one that runs it.
        version: Of that TensorRT.
        compute_capabilities: Of the GPUs that run it, as "sm89".
        num_bytes: Of the plan.
        activation_bytes: Of the device, that a run works in, in whichever profile takes the most;
            0 if the compiler did not say.
        seconds: Parsing and compiling.
        num_attentions: Fused attentions, each proven to be what the graph declares.
        num_caches: Caches that are updated in place.
        tensors: Inputs and outputs.
        layer_info: The parsed network's layers, as JSON.
        notes: What the compiler did otherwise than asked, in words.
    """

    flavour: Flavour
    version: str
    compute_capabilities: tuple[str, ...]
    num_bytes: int
    activation_bytes: int
    seconds: float
    num_attentions: int
    num_caches: int
    tensors: tuple[PlanTensor, ...]
    layer_info: str
    notes: tuple[str, ...] = ()


def slot_capacity(max_tokens: int) -> int:
    """Places of a slot that holds sequences of so many tokens."""
    return -(-max_tokens // _CAPACITY_STEP) * _CAPACITY_STEP


def decoder_profiles(
    layers: Sequence[LayerGeometry], max_tokens: int, max_step_tokens: int, max_sequences: int
) -> tuple[Profile, ...]:
    """A chunk of one sequence, and one token of each of several.

    Rows that one fused operator computes must be of one length: a padded row would be aligned to
    the end of its keys. So there is one sequence in a chunk, and one token in each row of several.
    """
    chunk = min(max_step_tokens, max_tokens)
    # One row of logits is usual of a chunk. What is planned for more, of a whole vocabulary each,
    # is the largest that there is to compute in.
    num_logits = (1, 1, min(MOST_LOGITS, chunk))
    return (
        _profile(
            "prefill",
            layers,
            slot_capacity(max_tokens),
            (1, 1, 1),
            (1, min(64, chunk), chunk),
            num_logits,
        ),
        _profile(
            "decode",
            layers,
            slot_capacity(max_tokens),
            (1, min(8, max_sequences), max_sequences),
            (1, 1, 1),
            (1, min(8, max_sequences), max_sequences),
        ),
    )


def _profile(
    role: Role,
    layers: Sequence[LayerGeometry],
    capacity: int,
    batches: tuple[int, int, int],
    lengths: tuple[int, int, int],
    num_logits: tuple[int, int, int],
) -> Profile:
    """The shapes of least, usual and most sequences, tokens of each, and rows of logits."""

    def of(name: str, shape: Callable[[int, int], tuple[int, ...]]) -> TensorRange:
        return TensorRange(name, *map(shape, batches, lengths))

    ranges = [
        of("input_ids", lambda batch, length: (batch, length)),
        of("write_index", lambda batch, _: (batch,)),
        of("kv_length", lambda batch, _: (batch,)),
        TensorRange("logit_rows", *((count,) for count in num_logits)),
    ]
    for kind in ("key", "value"):
        for i, layer in enumerate(layers):
            width = layer.key_dim if kind == "key" else layer.value_dim
            row = (layer.num_kv_heads, capacity, width)
            ranges.append(of(f"past_{kind}.{i}", lambda batch, _, row=row: (batch, *row)))  # type: ignore[misc]
    return Profile(role, tuple(ranges))
