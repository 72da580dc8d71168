"""Asks an engine for the logits of rows: each alone, or in batches."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, zip_longest

import numpy as np

from enginehouse_builder.manifest import Limits
from enginehouse_server.engine.base import EncoderLane, Logits, Shape, TokenRow

__all__ = ["answer_alone", "answer_batches", "equal_length_batches", "mixed_batches"]

_MAX_ROWS = 8


def answer_alone(lane: EncoderLane, rows: Sequence[TokenRow]) -> Logits:
    """Logits `[rows, labels]` of each row by itself, without any padding."""
    return answer_batches(lane, rows, ([i] for i in range(len(rows))))


def answer_batches(
    lane: EncoderLane, rows: Sequence[TokenRow], batches: Iterable[Sequence[int]]
) -> Logits:
    """Logits `[rows, labels]`, computed in batches of these indices, which name each row once."""
    answers: dict[int, Logits] = {}
    for batch in batches:
        chosen = [rows[i] for i in batch]
        lane.start(chosen, Shape(len(batch), max(len(row.ids) for row in chosen)))
        answers |= zip(batch, lane.wait(), strict=True)
    return np.stack([answers[i] for i in range(len(rows))])


def mixed_batches(rows: Sequence[TokenRow], limits: Limits) -> Iterator[list[int]]:
    """Indices in batches that put short rows beside long ones: as much padding as can be."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    half = (len(order) + 1) // 2
    ends = zip_longest(order[:half], reversed(order[half:]))
    mixed = (i for i in chain.from_iterable(ends) if i is not None)
    return _cut(mixed, rows, limits)


def equal_length_batches(rows: Sequence[TokenRow], limits: Limits) -> Iterator[list[int]]:
    """Indices in batches of rows of one length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for _, same in groupby(order, key=lambda i: len(rows[i].ids)):
        yield from _cut(same, rows, limits)


def _cut(order: Iterable[int], rows: Sequence[TokenRow], limits: Limits) -> Iterator[list[int]]:
    batch: list[int] = []
    longest = 0
    for i in order:
        longest = max(longest, len(rows[i].ids))
        is_full = len(batch) == min(_MAX_ROWS, limits.max_batch)
        if batch and (is_full or longest * (len(batch) + 1) > limits.max_batch_tokens):
            yield batch
            batch, longest = [], len(rows[i].ids)
        batch.append(i)
    if batch:
        yield batch
