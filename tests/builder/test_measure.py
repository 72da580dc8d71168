from collections.abc import Sequence

import numpy as np
import pytest

from enginehouse_builder.buckets import default_buckets
from enginehouse_builder.manifest import ClassifyTask, Limits
from enginehouse_builder.measure import Budget, measure
from enginehouse_server.engine.base import Logits, Shape, TokenRow

TASK = ClassifyTask(("a", "b"), "single_label", False, "invariant", 0)
BUCKETS = default_buckets(Limits(512, 32, 1024), TASK)
SHAPES = [Shape(batch, bucket.length) for bucket in BUCKETS for batch in bucket.batches]


class TimedLane:
    """Takes so long for a token, on a clock of its own, and longer for a new shape."""

    def __init__(self, seconds_per_token: float, compile_s: float = 0.0) -> None:
        self.now = 0.0
        self._seconds_per_token = seconds_per_token
        self._compile_s = compile_s
        self._seen: set[Shape] = set()
        self._shape = Shape(0, 0)

    def start(self, rows: Sequence[TokenRow], shape: Shape) -> None:
        assert len(rows) == shape.batch
        assert {len(row.ids) for row in rows} == {shape.length}
        self._shape = shape

    def wait(self) -> Logits:
        if self._shape not in self._seen:
            self.now += self._compile_s
            self._seen.add(self._shape)
        self.now += self._shape.num_tokens * self._seconds_per_token
        return np.zeros((self._shape.batch, 2), np.float32)

    def clock(self) -> float:
        return self.now


def test_a_quick_engine_is_measured_in_every_shape() -> None:
    lane = TimedLane(1e-6)
    found = measure(lane, BUCKETS, Budget(), lane.clock)
    assert [(one.length, one.batch) for one in found] == [(s.length, s.batch) for s in SHAPES]


def test_the_median_leaves_out_the_compilation() -> None:
    lane = TimedLane(1e-5, compile_s=0.1)
    found = measure(lane, BUCKETS, Budget(), lane.clock)
    for one in found:
        assert one.median_ms == pytest.approx(one.batch * one.length * 1e-2, rel=1e-3)


@pytest.mark.parametrize("seconds_per_token", [1e-4, 1e-3, 5e-3])
def test_a_slow_engine_is_measured_in_spread_shapes_within_the_budget(
    seconds_per_token: float,
) -> None:
    lane, budget = TimedLane(seconds_per_token), Budget(15, 45, 24)
    found = measure(lane, BUCKETS, budget, lane.clock)
    assert lane.now <= budget.most_seconds
    assert 5 <= len(found) < len(SHAPES)
    sizes = {one.batch * one.length for one in found}
    assert min(sizes) == 8
    assert max(sizes) >= 256


def test_the_same_engine_is_measured_in_the_same_shapes() -> None:
    lanes = TimedLane(1e-3), TimedLane(1e-3)
    one, other = (measure(lane, BUCKETS, Budget(), lane.clock) for lane in lanes)
    assert one == other


def test_one_shape_alone_is_measured() -> None:
    lane = TimedLane(100.0)
    buckets = default_buckets(Limits(8, 1, 8), TASK)
    assert len(measure(lane, buckets, Budget(), lane.clock)) == 1
