"""What the rest of the server knows of an engine that decodes: tokens of sequences in, logits out.

The engine keeps the keys and values of the tokens that it has seen in blocks of `block_size`
tokens. Whoever drives it owns the blocks: which sequence has which, and when one is free again; the
engine only reads and writes where it is told. A step computes new tokens of some sequences. What a
step may hold is the engine's to say, once, in its limits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .base import Logits, PlanTraits, Precision

__all__ = [
    "MOST_LOGITS",
    "AttentionKind",
    "CachePrecision",
    "DecoderEngine",
    "DecoderLimits",
    "DecoderPrecision",
    "DecoderSpec",
    "LayerGeometry",
    "ReducedLogits",
    "ReducingDecoder",
    "StepItem",
]

DecoderPrecision = Precision
CachePrecision = Literal["fp32", "bf16", "fp16", "u8"]
AttentionKind = Literal["paged", "slots"]
MOST_LOGITS = 128  # rows of one item: they are much memory, and plans are compiled for no more


class LayerGeometry(NamedTuple):
    """Shape of one layer's attention.

    Attributes:
        num_heads: Of queries.
        num_kv_heads: Of keys and values; divides num_heads.
        key_dim: Width of a key of one head.
        value_dim: Width of a value of one head.
        window: How many positions, itself included, a token sees; 0 for all before it.
        softcap: Bound `c` of scores, which become `c * tanh(score / c)`; 0 for none.
        has_slopes: Whether a score falls with the distance, by a slope of each head (ALiBi).
        has_sinks: Whether a logit of each head, without a value, takes part in the softmax.
    """

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int
    softcap: float = 0.0
    has_slopes: bool = False
    has_sinks: bool = False


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """What an engine is made from.

    Attributes:
        model: The canonical graph, in the precision of its weights.
        precision: Arithmetic asked of the runtime; int8 and int4 weights are in the file itself.
        cache_precision: Of cached keys and values.
        layers: Shape of each layer's attention.
        vocab_size: Width of the logits.
        max_tokens: Longest sequence, prompt and answer.
        max_step_tokens: Most new tokens of a step.
        max_sequences: Most sequences of a step.
        cache_bytes: Most memory for cached keys and values; 0 leaves it to an engine on a GPU,
            which then takes half of what its device has left with the weights on it.
        num_threads: Processor threads.
        attention: "paged" by an operator of the runtime over blocks that sequences may share;
            "slots" over a slot of each sequence, as long as the longest: any attention that the
            graph can say.
        cuda_binding: What drives CUDA for engines on a GPU: "cuda-core" or "pycuda".
        plan: Of a model that is a compiled plan; None of others.
        kernels: Folder in which an engine keeps what it compiles of this model here, from one load
            to the next, and what it became; None for none.
    """

    model: Path
    precision: DecoderPrecision
    cache_precision: CachePrecision
    layers: tuple[LayerGeometry, ...]
    vocab_size: int
    max_tokens: int
    max_step_tokens: int
    max_sequences: int
    cache_bytes: int
    num_threads: int
    attention: AttentionKind = "paged"
    cuda_binding: str = "cuda-core"
    plan: PlanTraits | None = None
    kernels: Path | None = None


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """What one step may hold.

    Attributes:
        block_size: Tokens of a block.
        num_blocks: Blocks of the cache, numbered from 0.
        max_tokens: Longest sequence.
        max_step_tokens: Most new tokens of a step.
        max_sequences: Most items of a step.
        mixes: Whether a step takes any mix of prompt chunks and single tokens. Otherwise it is
            either one chunk of one sequence or one token of each of several.
        shares_blocks: Whether sequences may have blocks in common, each full and never written
            again. Otherwise a shared prefix is copied, by `copy_block`.
        num_best: How many of a row's largest logits the engine gives apart from the others, if it
            is a `ReducingDecoder`; 0 where it always gives all.
    """

    block_size: int
    num_blocks: int
    max_tokens: int
    max_step_tokens: int
    max_sequences: int
    mixes: bool
    shares_blocks: bool
    num_best: int = 0


class StepItem(NamedTuple):
    """What one sequence has to be computed in a step.

    Attributes:
        blocks: The sequence's blocks in order, enough for `num_cached + len(tokens)` tokens; block
            `i` holds tokens `i * block_size` and following.
        num_cached: Tokens of the sequence that the cache has already.
        tokens: The next tokens, at least one. Their keys and values are written into the blocks.
        num_logits: For how many of the last `tokens` logits are wanted: 0 for a chunk of a prompt
            that goes on, 1 to choose a next token, more to score a prompt, up to MOST_LOGITS.
        is_reduced: Whether the largest logits of each row are likely to do, so that a
            `ReducingDecoder` need not copy the others from its device before they are asked for.
    """

    blocks: Sequence[int]
    num_cached: int
    tokens: Sequence[int]
    num_logits: int = 1
    is_reduced: bool = False


class ReducedLogits(NamedTuple):
    """A step's logits as a device has reduced them; valid until the next step is started.

    Attributes:
        best: The `num_best` largest of each row, largest first, `[rows, num_best]` fp32. Which of
            those that equal the least of them are there, and in which order equal ones are, is the
            runtime's to choose.
        tokens: Whose they are, `[rows, num_best]` int32.
        weight_sums: Sum over the vocabulary of `exp(logit - best[row, 0])`, `[rows]` fp32: no
            finite number where a logit is NaN or infinitely large.
        fetch: Gives all logits `[end - begin, vocab]` of the rows from `begin` to `end`, which are
            copied now unless they were before; may be overwritten. Raises DeviceError.
    """

    best: NDArray[np.float32]
    tokens: NDArray[np.int32]
    weight_sums: NDArray[np.float32]
    fetch: Callable[[int, int], Logits]


class DecoderEngine(Protocol):
    """A loaded engine; belongs to one thread after it was made. `close` releases it."""

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
    def limits(self) -> DecoderLimits:
        """What one step may hold."""
        ...

    def start(self, items: Sequence[StepItem]) -> None:
        """Begins to compute a step, at least one item; returns before it is done.

        The items may be changed as soon as this returns.
        """
        ...

    def wait(self) -> Logits:
        """Waits for the step that was started.

        Returns:
            Logits `[sum of num_logits, vocab]`, fp32, in the order of items and their tokens. The
            engine's own: valid until the next `start`, and the caller may overwrite them.

        Raises:
            DeviceError: The runtime failed; what the step was to write is undefined.
        """
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copies the keys and values of a block into another; not while a step computes."""
        ...

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Makes blocks as they were before anything was written; not while a step computes.

        What is no number there could reach whoever has the block next.
        """
        ...

    def close(self) -> None:
        """Releases the engine; no step may be computing."""
        ...


@runtime_checkable
class ReducingDecoder(DecoderEngine, Protocol):
    """An engine on a device with memory of its own, which can keep most logits there.

    Its limits say whether it does: `num_best` is 0 where its graph was made without.
    """

    def wait_reduced(self) -> ReducedLogits:
        """Waits for the step that was started, in the place of `wait`.

        Raises:
            DeviceError: The runtime failed; what the step was to write is undefined.
        """
        ...
