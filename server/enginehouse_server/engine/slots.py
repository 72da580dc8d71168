"""A step over slots, laid out for a graph that computes rows of equal length: what runtimes share.

A slot holds the keys and values of one sequence, up to the longest. A step is a chunk of one
sequence, or a token of each of several. Runtimes compile anew for every shape that they meet, so
both are padded to a small grid; what is computed of the padding is dropped. Knows no runtime.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.errors import PlanMismatchError

from .decoder import CachePrecision, DecoderLimits, DecoderSpec, StepItem

__all__ = ["SlotStep", "coarse", "fine", "lay_out", "slot_limits"]

_CAPACITY_STEP = 32  # tokens: a slot's capacity is a multiple of it
_EXACT: tuple[CachePrecision, ...] = ("fp32",)
_BYTES: dict[CachePrecision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}  # of a cached number


@dataclass(frozen=True, slots=True)
class SlotStep:
    """A step as rows of equal length; rows, tokens and logits beyond those asked for are padding.

    Attributes:
        slots: Of the items, in their order.
        num_new: New tokens of each of them.
        num_logits: Logits asked for.
        input_ids: `[batch, length]`.
        write_index: Tokens that each row's slot has already, `[batch]`; 0 of padding.
        logit_rows: Tokens whose logits are computed, as indices of `[batch * length]`.
    """

    slots: Sequence[int]
    num_new: int
    num_logits: int
    input_ids: NDArray[np.int64]
    write_index: NDArray[np.int32]
    logit_rows: NDArray[np.int64]

    @property
    def num_kept(self) -> int:
        """Places that the longest row's slot must have, padding included."""
        length: int = self.input_ids.shape[1]
        return int(self.write_index.max()) + length


def slot_limits(
    spec: DecoderSpec, precisions: Collection[CachePrecision] = _EXACT
) -> DecoderLimits:
    """What an engine over slots takes, whose cache is of `spec.cache_bytes` at most.

    There are no more slots than sequences of a step. Where there is no room for a slot of the
    longest sequence, there is one slot, and the longest sequence is what it holds.

    Args:
        spec: Of the engine.
        precisions: What its cache can be of.

    Raises:
        PlanMismatchError: The cache has no room for any, or is to be of another precision.
    """
    if spec.cache_precision not in precisions:
        known = " or ".join(p for p in _BYTES if p in precisions)
        raise PlanMismatchError(
            f"keys and values in slots are cached in {known} here, not in {spec.cache_precision}: "
            f"build the model with CACHE_PRECISION={known}"
        )
    capacity = -(-spec.max_tokens // _CAPACITY_STEP) * _CAPACITY_STEP
    number_bytes = _BYTES[spec.cache_precision]
    token_bytes = number_bytes * sum(
        x.num_kv_heads * (x.key_dim + x.value_dim) for x in spec.layers
    )
    num_slots = min(spec.max_sequences, spec.cache_bytes // (token_bytes * capacity))
    if not num_slots:
        num_slots = 1
        capacity = spec.cache_bytes // (token_bytes * _CAPACITY_STEP) * _CAPACITY_STEP
    if not capacity:
        raise PlanMismatchError(
            f"{spec.cache_bytes} bytes of cache hold no slot of {_CAPACITY_STEP} tokens, which "
            f"takes {token_bytes * _CAPACITY_STEP}: allow more"
        )
    return DecoderLimits(
        block_size=capacity,
        num_blocks=num_slots,
        max_tokens=min(spec.max_tokens, capacity),
        max_step_tokens=spec.max_step_tokens,
        max_sequences=num_slots,
        mixes=False,
        shares_blocks=False,
    )


def lay_out(
    items: Sequence[StepItem], limits: DecoderLimits, rows: Sequence[int] | None = None
) -> SlotStep:
    """Lays items out. Their blocks and tokens are copied.

    Args:
        items: Of the step.
        limits: What it may hold.
        rows: Which row each item is, from 0 and all of them, and nothing is padded; None for their
            own order and padding.
    """
    num_new = len(items[0].tokens)
    assert 0 < len(items) <= limits.max_sequences, "as many items as the limits allow"
    assert num_new <= limits.max_step_tokens, "as many tokens as the limits allow"
    assert len(items) == 1 or all(len(i.tokens) == 1 for i in items), "no mix"
    assert all(i.num_cached + num_new <= limits.max_tokens for i in items), "no longer than a slot"
    batch, length = len(items), num_new
    if rows is None:
        batch = coarse(batch)
        # Never beyond the last position that a model has: its table of them may end there.
        length = min(fine(num_new), limits.max_tokens - max(i.num_cached for i in items))
    places = range(len(items)) if rows is None else rows
    ids = np.zeros((batch, length), np.int64)
    starts = np.zeros(batch, np.int32)
    for row, item in zip(places, items, strict=True):
        ids[row, :num_new] = item.tokens
        starts[row] = item.num_cached
    asked = [
        row * length + place
        for row, item in zip(places, items, strict=True)
        for place in range(num_new - item.num_logits, num_new)
    ]
    logit_rows = np.zeros(coarse(len(asked)) if rows is None else len(asked), np.int64)
    logit_rows[: len(asked)] = asked
    return SlotStep(
        slots=[item.blocks[0] for item in items],
        num_new=num_new,
        num_logits=len(asked),
        input_ids=ids,
        write_index=starts,
        logit_rows=logit_rows,
    )


def coarse(count: int) -> int:
    """The next of 0, 1, 2, 3, 4, 6, 8, 12, 16 …: two to an octave."""
    return _up(count, 2)


def fine(count: int) -> int:
    """The next of 0, 1, 2 … 8, 9 … 16, 18, 20 … 32, 36 …: eight to an octave."""
    return _up(count, 8)


def _up(count: int, to_octave: int) -> int:
    octave = 1 << (count - 1).bit_length() - 1 if count > 1 else 1  # the power of 2 below count
    unit = max(1, octave // to_octave)
    return -(-count // unit) * unit
