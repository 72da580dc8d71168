"""What a manifest says of a TensorRT plan: what it runs on, and in which shapes."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Plan", "PlanProfile", "PlanTensor"]


@dataclass(frozen=True, slots=True)
class PlanTensor:
    """The shapes of one input in a profile.

    Attributes:
        name: Of the graph's input.
        dtype: As in the graph, for example "int64".
        min: Least size of every dimension.
        opt: What the plan is fastest for.
        max: Greatest size of every dimension.
    """

    name: str
    dtype: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlanProfile:
    """An optimization profile.

    Attributes:
        role: What it computes: batches of an encoder, or of a decoder a chunk of one prompt or a
            token of each of several sequences.
        inputs: Shapes of all inputs.
    """

    role: Literal["encode", "prefill", "decode"]
    inputs: tuple[PlanTensor, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled plan, and what a machine must have to run it.

    Attributes:
        flavour: The runtime that reads it, the engine's backend.
        version: Of that runtime, all its numbers: another reads no plan of it.
        compute_capabilities: GPUs that it runs on, for example ("sm89", "sm120"), or ("any",).
        profiles: In the plan's own order.
        slot_tokens: Tokens of a row of a decoder's cache; 0 of an encoder.
        device_bytes: Least memory of the GPU: weights, activations, and one slot or batch.
        certified: What ran it when it was certified: "runtime" its own, on the engine's device;
            "lowered" the same graph on ONNX Runtime, as there was no such GPU. The first load on
            another device certifies it there.
    """

    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[PlanProfile, ...]
    slot_tokens: int
    device_bytes: int
    certified: Literal["runtime", "lowered"]
