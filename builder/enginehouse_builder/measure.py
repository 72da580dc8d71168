"""Times an engine by the shape of the batch; the scheduler plans with what is found.

Only what was measured is said. On a slow engine that is a part of the shapes, spread over all of
them: their order is fixed, and shapes are taken from it until the time is spent.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from enginehouse_server.engine.base import EncoderLane, Shape

from .manifest import Bucket, Latency

__all__ = ["Budget", "measure"]

_RUNS = 3
_QUICK_S = 0.05  # a quicker batch is run more often
_MANY_RUNS = 11


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to measure.

    Attributes:
        seconds: Until then all shapes are taken.
        most_seconds: Until then as many more as `num_shapes` needs.
        num_shapes: Enough to know an engine's speed by.
    """

    seconds: float = 15.0
    most_seconds: float = 45.0
    num_shapes: int = 24


class _Row:
    """Tokens that are as good as any: speed does not depend on them."""

    type_ids = None

    def __init__(self, length: int) -> None:
        self.ids = [1] * length


def measure(
    lane: EncoderLane,
    buckets: Sequence[Bucket],
    budget: Budget,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Latency, ...]:
    """Median latencies, ascending by length and batch.

    A shape whose time would pass the budget, as the last one lets expect, is passed over.
    """
    began = clock()
    found: dict[Shape, float] = {}
    per_token = 0.0  # seconds, of the last shape
    for shape in _spread([Shape(b, bucket.length) for bucket in buckets for b in bucket.batches]):
        limit = budget.seconds if len(found) >= budget.num_shapes else budget.most_seconds
        expected = per_token * shape.num_tokens * (_RUNS + 1)
        if found and clock() - began + expected > limit:
            continue
        found[shape] = _median_s(lane, shape, clock)
        per_token = found[shape] / shape.num_tokens
    return tuple(
        Latency(shape.batch, shape.length, round(found[shape] * 1e3, 4))
        for shape in sorted(found, key=lambda s: (s.length, s.batch))
    )


def _median_s(lane: EncoderLane, shape: Shape, clock: Callable[[], float]) -> float:
    rows = [_Row(shape.length)] * shape.batch

    def run() -> float:
        started = clock()
        lane.start(rows, shape)
        lane.wait()
        return clock() - started

    run()  # compiles the kernels of the shape
    seconds = [run() for _ in range(_RUNS)]
    if median(seconds) < _QUICK_S:
        seconds += [run() for _ in range(_MANY_RUNS - _RUNS)]
    return median(seconds)


def _spread(shapes: Sequence[Shape]) -> list[Shape]:
    """Shapes in an order whose every beginning is spread over their sizes; the ends come first.

    Powers of two go before the rest, so that the same batch sizes are known for many lengths.
    """
    longest = max(shape.length for shape in shapes)
    ordered = sorted(shapes, key=lambda s: (s.num_tokens, s.length))
    lengths = {s.length for s in shapes if _is_round(s.length)} | {longest}
    round_ones = [s for s in ordered if _is_round(s.batch) and s.length in lengths]
    return list(dict.fromkeys([*_from_coarse_to_fine(round_ones), *_from_coarse_to_fine(ordered)]))


def _from_coarse_to_fine(shapes: Sequence[Shape]) -> list[Shape]:
    if not shapes:
        return []
    order = [0, len(shapes) - 1]
    step = len(shapes) - 1
    while step > 1:
        step = (step + 1) // 2
        order += range(0, len(shapes), step)
    return [shapes[i] for i in dict.fromkeys([*order, *range(len(shapes))])]


def _is_round(number: int) -> bool:
    return number & (number - 1) == 0
