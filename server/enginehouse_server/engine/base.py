"""What the rest of the server knows of an engine that encodes: rows of tokens in, logits out.

An engine has lanes. A lane computes one batch at a time and belongs to one thread; lanes of one
engine compute side by side (streams of a CPU runtime, execution contexts of a GPU). Starting a
batch and waiting for it are two calls, so that a thread can deliver the last results meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EncoderEngine",
    "EncoderLane",
    "EncoderSpec",
    "KernelKeeper",
    "Logits",
    "PlanTraits",
    "Precision",
    "Shape",
    "TokenRow",
]

# Of an engine's arithmetic, or of its weights where those are narrower. Which runtime has which for
# which task is the builder's table.
Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8", "int4", "fp8"]
Logits = NDArray[np.float32]  # [rows, labels]


class Shape(NamedTuple):
    """Rows and padded length of a batch, tokens."""

    batch: int
    length: int

    @property
    def num_tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.batch * self.length


class TokenRow(Protocol):
    """The tokens of one input."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids, special tokens included, at least one."""
        ...

    @property
    def type_ids(self) -> Sequence[int] | None:
        """Which of two texts each token is of; None when all are of the first."""
        ...


@dataclass(frozen=True, slots=True)
class PlanTraits:
    """What a manifest says of a compiled plan, as far as its engine has to know.

    Attributes:
        version: Of the runtime that compiled it, all its numbers: no other reads it.
        compute_capabilities: GPUs that it runs on, for example ("sm89", "sm120"), or ("any",).
        roles: What each of its profiles computes, in the plan's order: "encode", "prefill",
            "decode".
        device_bytes: Least memory of the GPU: weights, activations, and one slot or batch.
    """

    version: str
    compute_capabilities: tuple[str, ...]
    roles: tuple[str, ...]
    device_bytes: int


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What an engine is made from.

    Attributes:
        model: File that the runtime reads.
        precision: Arithmetic asked of the runtime; int8 is in the file's own Q/DQ.
        inputs: Names of the graph's inputs, from "input_ids", "attention_mask", "token_type_ids".
        pad_id: Token that fills a row up.
        max_batch_tokens: Most tokens of one batch: sizes the staging buffers.
        num_shapes: How many shapes stay compiled.
        num_threads: Processor threads for all lanes together.
        num_lanes: Batches that compute side by side.
        cuda_binding: What drives CUDA for engines on a GPU: "cuda-core" or "pycuda".
        plan: Of a model that is a compiled plan; None of others.
        kernels: Folder in which an engine keeps what it compiles of this model here, from one load
            to the next, and what it became; None for none.
    """

    model: Path
    precision: Precision
    inputs: tuple[str, ...]
    pad_id: int
    max_batch_tokens: int
    num_shapes: int
    num_threads: int
    num_lanes: int = 1
    cuda_binding: str = "cuda-core"
    plan: PlanTraits | None = None
    kernels: Path | None = None


class EncoderLane(Protocol):
    """Computes one batch at a time, on the thread that owns it."""

    def start(self, rows: Sequence[TokenRow], shape: Shape) -> None:
        """Begins to compute a batch.

        Args:
            rows: At most `shape.batch` rows of at most `shape.length` tokens; missing rows and
                the rest of each row are padding.
            shape: What to compute. A shape that is new to the engine costs it a compilation.
        """
        ...

    def wait(self) -> Logits:
        """Waits for the batch that was started.

        Returns:
            Logits `[len(rows), labels]`, fp32, the caller's own.

        Raises:
            DeviceError: The runtime failed.
        """
        ...


class EncoderEngine(Protocol):
    """A loaded engine; `close` releases it."""

    @property
    def backend(self) -> str:
        """The runtime's name, as in the manifest."""
        ...

    @property
    def runtime_version(self) -> str:
        """The runtime's version."""
        ...

    @property
    def device(self) -> str:
        """The device's own name."""
        ...

    @property
    def lanes(self) -> Sequence[EncoderLane]:
        """Its lanes, each for one thread."""
        ...

    def close(self) -> None:
        """Releases the engine; no lane may be computing."""
        ...


@runtime_checkable
class KernelKeeper(Protocol):
    """An engine, of whatever kind, that has a folder for what it becomes where it runs."""

    def keep_kernels(self) -> None:
        """Keeps for the next load what was compiled so far, and what can be told of its layers.

        On the thread that loaded the engine; nothing may be computing.
        """
        ...
