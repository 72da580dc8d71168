import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_builder.buckets import default_buckets
from enginehouse_builder.manifest import ClassifyTask, Limits
from enginehouse_server.engine.base import Shape
from enginehouse_server.errors import OverloadedError
from enginehouse_server.scheduler import (
    EncoderBatcher,
    EncoderWork,
    LatencyModel,
    Policy,
    ShapeGrid,
)

TASK = ClassifyTask(("a", "b"), "single_label", False, "invariant", 0)
GRID = ShapeGrid((b.length, b.batches) for b in default_buckets(Limits(128, 16, 512), TASK))
LATENCY = LatencyModel(
    GRID, {s: 1e-3 + 1e-4 * s.num_tokens + 1e-7 * s.num_tokens * s.length for s in GRID.shapes}
)


def batcher(**changes: object) -> EncoderBatcher:
    settings = {"max_queue": 1000, "max_queue_s": 1e9, "window": 0.5, **changes}
    return EncoderBatcher(GRID, LATENCY, Policy(**settings))  # type: ignore[arg-type]


def work(request_id: int, length: int, priority: int = 0, deadline: float = 1e9) -> EncoderWork:
    return EncoderWork(request_id, 0, [7] * length, None, priority, deadline)


def drain(source: EncoderBatcher) -> list[list[int]]:
    batches = []
    while (batch := source.take(0.0).batch) is not None:
        batches.append([m.work.request_id for m in batch.members])
    return batches


@given(st.lists(st.tuples(st.integers(1, 128), st.integers(-2, 2)), max_size=120))
def test_every_admitted_input_is_taken_once_in_a_shape_of_the_grid(
    inputs: list[tuple[int, int]],
) -> None:
    source = batcher()
    for i, (length, priority) in enumerate(inputs):
        source.admit([work(i, length, priority)], float(i))
    shapes, seen = set(GRID.shapes), []
    while (batch := source.take(0.0).batch) is not None:
        assert batch.shape in shapes
        assert len(batch.members) <= batch.shape.batch
        assert all(m.num_tokens <= batch.shape.length for m in batch.members)
        assert 0 <= batch.padding_fraction < 1
        seen += [m.work.request_id for m in batch.members]
    assert sorted(seen) == list(range(len(inputs)))
    assert source.num_waiting == source.num_waiting_tokens == 0


@given(st.lists(st.tuples(st.integers(1, 128), st.integers(-2, 2)), min_size=1, max_size=60))
def test_the_next_batch_holds_the_first_in_order_of_service(inputs: list[tuple[int, int]]) -> None:
    source = batcher()
    for i, (length, priority) in enumerate(inputs):
        source.admit([work(i, length, priority)], 0.0)
    left = {i: (-priority, i) for i, (_, priority) in enumerate(inputs)}
    while left:
        first = min(left, key=left.__getitem__)
        batch = source.take(0.0).batch
        assert batch is not None
        taken = [m.work.request_id for m in batch.members]
        assert first in taken
        for request_id in taken:
            del left[request_id]


@given(st.lists(st.integers(1, 128), min_size=1, max_size=40))
def test_equal_lengths_never_share_a_batch_with_others(lengths: list[int]) -> None:
    grid = ShapeGrid((length, (1, 4)) for length in range(1, 129))
    policy = Policy(max_queue=1000, max_queue_s=1e9, window=1.0, equal_lengths=True)
    source = EncoderBatcher(grid, LatencyModel(grid, {}), policy)
    for i, length in enumerate(lengths):
        source.admit([work(i, length)], 0.0)
    while (batch := source.take(0.0).batch) is not None:
        assert {m.num_tokens for m in batch.members} == {batch.shape.length}


def test_similar_lengths_run_together_and_others_apart() -> None:
    source = batcher(window=1.0)
    for i, length in enumerate([10, 100, 10, 100, 9, 99, 10, 100]):
        source.admit([work(i, length)], 0.0)
    assert sorted(map(sorted, drain(source))) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_short_text_does_not_wait_for_a_crowd_of_long_ones() -> None:
    source = batcher()
    for i in range(60):
        source.admit([work(i, 128)], 0.0)
    source.admit([work(60, 8)], 0.0)
    taken_before = next(i for i, batch in enumerate(drain(source)) if 60 in batch)
    assert taken_before <= 30  # at the latest when it has come into the window


def test_expired_inputs_are_never_in_a_batch() -> None:
    source = batcher()
    source.admit([work(1, 10, deadline=5.0)], 0.0)
    source.admit([work(2, 10)], 0.0)
    batch, expired = source.take(5.0)
    assert batch is not None
    assert [m.work.request_id for m in batch.members] == [2]
    assert [m.work.request_id for m in expired] == [1]


def test_what_cannot_be_done_by_its_deadline_is_not_begun() -> None:
    source = batcher()
    source.admit([work(1, 100, deadline=0.5)], 0.0)
    source.admit([work(2, 100)], 0.0)
    batch, expired = source.take(0.499)  # an input of 100 tokens takes 12 ms
    assert batch is not None
    assert [m.work.request_id for m in batch.members] == [2]
    assert [m.work.request_id for m in expired] == [1]


def test_batches_that_take_longer_than_predicted_move_the_last_moment() -> None:
    source = batcher()
    for _ in range(100):
        source.admit([work(1, 100)], 0.0)
        batch = source.take(0.0).batch
        assert batch is not None
        source.observe(batch, 0.01, 0.2)
    source.admit([work(2, 100, deadline=0.5)], 0.0)
    assert source.take(0.35).batch is None


def test_expired_inputs_alone_leave_an_empty_queue() -> None:
    source = batcher()
    source.admit([work(1, 10, deadline=5.0)], 0.0)
    batch, expired = source.take(6.0)
    assert batch is None
    assert len(expired) == 1
    assert source.num_waiting == 0


def test_removed_requests_are_not_taken() -> None:
    source = batcher()
    for i in range(4):
        source.admit([work(i, 10)], 0.0)
    assert len(source.remove([1, 3])) == 2
    assert sorted(i for batch in drain(source) for i in batch) == [0, 2]


def test_a_full_queue_names_the_limit_and_admits_nothing_of_the_request() -> None:
    source = batcher(max_queue=3)
    source.admit([work(1, 10)] * 2, 0.0)
    with pytest.raises(
        OverloadedError, match=r"2 inputs wait and 2 more would exceed .* of 3"
    ) as e:
        source.admit([work(2, 10)] * 2, 0.0)
    assert e.value.retry_after_s > 0
    assert source.num_waiting == 2


def test_an_empty_queue_takes_a_request_larger_than_the_bound() -> None:
    source = batcher(max_queue=3)
    source.admit([work(1, 10)] * 5, 0.0)
    assert source.num_waiting == 5


def test_a_wait_beyond_the_limit_is_refused() -> None:
    source = batcher(max_queue_s=0.05)
    source.admit([work(i, 100) for i in range(10)], 0.0)
    with pytest.raises(OverloadedError, match=r"longer than the limit of 0\.05 s"):
        source.admit([work(11, 10)], 0.0)


def test_a_request_that_would_still_wait_at_its_deadline_is_refused_at_once() -> None:
    source = batcher()
    source.admit([work(i, 100) for i in range(10)], 0.0)
    with pytest.raises(OverloadedError, match="time left to the deadline"):
        source.admit([work(11, 10, deadline=0.02)], 0.0)
    source.admit([work(12, 10, priority=1, deadline=0.02)], 0.0)  # nothing is before it


def test_the_pace_is_learnt_from_what_batches_take() -> None:
    source = batcher(max_queue_s=1.0)
    for _ in range(100):
        source.admit([work(1, 100)], 0.0)
        batch = source.take(0.0).batch
        assert batch is not None
        source.observe(batch, 0.5, 0.5)
    source.admit([work(i, 100) for i in range(3)], 0.0)
    with pytest.raises(OverloadedError, match="longer than the limit"):
        source.admit([work(9, 10)], 0.0)


def test_the_latency_curve_goes_through_what_it_was_made_from() -> None:
    found = np.array([LATENCY.seconds[GRID.bucket_of(s.length)][s.batch] for s in GRID.shapes])
    true = [1e-3 + 1e-4 * s.num_tokens + 1e-7 * s.num_tokens * s.length for s in GRID.shapes]
    np.testing.assert_allclose(found, true, rtol=1e-6)


def test_shape_of_pads_up_to_the_next_batch_size() -> None:
    grid = ShapeGrid([(8, (1, 2, 4)), (16, (1, 2))])
    assert grid.shape_of(0, 3) == Shape(4, 8)
    assert [grid.bucket_of(n) for n in (1, 8, 9, 16)] == [0, 0, 1, 1]
