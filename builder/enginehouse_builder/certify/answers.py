"""Asks an engine for the logits of rows: each alone, in batches, or padded as a server may."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, zip_longest

import numpy as np

from enginehouse_builder.buckets import lengths_up_to
from enginehouse_builder.manifest import Limits
from enginehouse_server.engine.base import EncoderLane, Logits, Shape, TokenRow

__all__ = [
    "answer_alone",
    "answer_batches",
    "answer_padded",
    "equal_length_batches",
    "mixed_batches",
]

_MAX_ROWS = 8
_FAR_EVERY = 7  # of the rows that are padded: to the longest length; the others by little


def answer_alone(lane: EncoderLane, rows: Sequence[TokenRow]) -> Logits:
    """Logits `[rows, labels]` of each row by itself, without any padding."""
    return np.stack([_answer(lane, row, Shape(1, len(row.ids))) for row in rows])


def answer_padded(lane: EncoderLane, rows: Sequence[TokenRow], limits: Limits) -> Logits:
    """Logits `[rows, labels]` of each row by itself in a longer shape, as far as limits allow.

    It is the next longer one that a server pads to, for some rows the longest of all, and every
    second has an empty row too.
    """
    lengths = lengths_up_to(limits.max_tokens)
    answers = []
    for i, row in enumerate(rows):
        length = next((n for n in lengths if n > len(row.ids)), len(row.ids))
        if i % _FAR_EVERY == 0:
            length = limits.max_tokens
        num_empty = i % 2 if _has_room(Shape(1, length), limits) else 0
        answers.append(_answer(lane, row, Shape(1 + num_empty, length)))
    return np.stack(answers)


def answer_batches(
    lane: EncoderLane,
    rows: Sequence[TokenRow],
    batches: Iterable[Sequence[int]],
    limits: Limits,
) -> Logits:
    """Logits `[rows, labels]`, computed in batches of these indices, which name each row once.

    Where the limits leave room for it, a batch has an empty row too, as a server's may.
    """
    answers: dict[int, Logits] = {}
    for batch in batches:
        chosen = [rows[i] for i in batch]
        shape = Shape(len(batch), max(len(row.ids) for row in chosen))
        num_empty = 1 if _has_room(shape, limits) else 0
        lane.start(chosen, shape._replace(batch=shape.batch + num_empty))
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


def _answer(lane: EncoderLane, row: TokenRow, shape: Shape) -> Logits:
    lane.start([row], shape)
    answer: Logits = lane.wait()[0]
    return answer


def _has_room(shape: Shape, limits: Limits) -> bool:
    """Whether the limits allow one more row."""
    num_tokens = shape.num_tokens + shape.length
    return shape.batch < limits.max_batch and num_tokens <= limits.max_batch_tokens


def _cut(order: Iterable[int], rows: Sequence[TokenRow], limits: Limits) -> Iterator[list[int]]:
    """Every second batch has a row less than it could: room for an empty one."""
    most = min(_MAX_ROWS, limits.max_batch)
    num_short = 0
    batch: list[int] = []
    longest = 0
    for i in order:
        longest = max(longest, len(rows[i].ids))
        is_full = len(batch) >= most - num_short
        if batch and (is_full or longest * (len(batch) + 1) > limits.max_batch_tokens):
            yield batch
            batch, longest = [], len(rows[i].ids)
            num_short = 1 - num_short
        batch.append(i)
    if batch:
        yield batch
