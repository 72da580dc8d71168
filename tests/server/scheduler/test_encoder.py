import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse_server.errors import (
    DeadlineError,
    DeviceError,
    DeviceLostError,
    NotReadyError,
)
from enginehouse_server.scheduler import (
    Completion,
    EncoderBatcher,
    EncoderScheduler,
    EncoderWork,
    LatencyModel,
    Policy,
    ShapeGrid,
)
from enginehouse_server.scheduler.encoder import OnLost
from tests.fixtures.encoder import ScriptedLane

GRID = ShapeGrid([(8, (1, 2, 4)), (16, (1, 2, 4)), (32, (1, 2))])


class Inbox:
    """Collects completions and counts how often each input ended."""

    def __init__(self) -> None:
        self.received: list[Completion] = []
        self._changed = threading.Condition()

    def deliver(self, completions: Sequence[Completion]) -> None:
        with self._changed:
            self.received += completions
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[Completion]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.received) >= count, 10)
            return list(self.received)


class Rig:
    """A scheduler over scripted lanes."""

    def __init__(self, num_lanes: int = 1, on_lost: OnLost = lambda _: None) -> None:
        self.lanes = [ScriptedLane() for _ in range(num_lanes)]
        self.inbox = Inbox()
        policy = Policy(max_queue=500, max_queue_s=1e9, window=0.5)
        measured = {s: 1e-3 + 1e-5 * s.num_tokens for s in GRID.shapes}
        batcher = EncoderBatcher(GRID, LatencyModel(GRID, measured), policy)
        self.batches: list[float] = []
        self.scheduler = EncoderScheduler(
            batcher,
            self.lanes,
            self.inbox.deliver,
            lambda _, seconds: self.batches.append(seconds),
            on_lost,
        )

    def hold(self) -> None:
        """Lets one batch start and stay in the engine, so that what follows waits."""
        for lane in self.lanes:
            lane.gate.clear()
        for i in range(1, len(self.lanes) + 1):
            self.scheduler.submit([work(-i)])
            deadline = time.monotonic() + 10
            while sum(len(x.batches) for x in self.lanes) < i and time.monotonic() < deadline:
                time.sleep(0.001)
        assert all(len(lane.batches) == 1 for lane in self.lanes)

    def release(self) -> None:
        for lane in self.lanes:
            lane.gate.set()


def work(request_id: int, length: int = 5, deadline: float = float("inf")) -> EncoderWork:
    return EncoderWork(request_id, 0, [request_id] * length, None, 0, deadline)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.release()
    rig.scheduler.close(10)


def test_each_input_gets_its_own_logits(rig: Rig) -> None:
    for i in range(20):
        rig.scheduler.submit([work(i, 1 + i)])
    for done in rig.inbox.wait_for(20):
        assert done.logits is not None
        assert done.logits.tolist() == [done.request_id, 1 + done.request_id]
        assert done.queued_at <= done.started_at <= done.ended_at


def test_what_waits_runs_in_one_batch_when_the_engine_is_free(rig: Rig) -> None:
    rig.hold()
    for i in range(4):
        rig.scheduler.submit([work(i)])
    rig.release()
    rig.inbox.wait_for(5)
    assert rig.lanes[0].batches[1] == [0, 1, 2, 3]


def test_a_failed_batch_fails_its_inputs_and_no_others(rig: Rig) -> None:
    rig.lanes[0].poison = 1
    rig.scheduler.submit([work(1)])
    rig.inbox.wait_for(1)
    rig.scheduler.submit([work(2)])
    failed, fine = rig.inbox.wait_for(2)
    assert isinstance(failed.error, DeviceError)
    assert fine.error is None


def test_a_lost_device_ends_everything_with_that_error_and_is_told_of_first() -> None:
    told: list[tuple[str, int]] = []

    def on_lost(error: DeviceLostError) -> None:
        told.append((str(error), len(lost_rig.inbox.received)))

    lost_rig = Rig(num_lanes=2, on_lost=on_lost)
    lost_rig.hold()
    for i in range(20):
        lost_rig.scheduler.submit([work(i)])
    lost_rig.lanes[0].lost = True
    lost_rig.lanes[0].gate.set()
    received = lost_rig.inbox.wait_for(22)
    assert all(isinstance(done.error, DeviceLostError) for done in received)
    assert told == [("the scripted device is lost", 0)]
    with pytest.raises(DeviceLostError, match="scripted device is lost"):
        lost_rig.scheduler.submit([work(30)])
    lost_rig.release()
    lost_rig.scheduler.close(10)
    assert len(lost_rig.inbox.received) == 22, "the other lane's batch ended twice"


def test_an_engine_that_hangs_is_given_up_and_what_it_says_later_is_dropped(rig: Rig) -> None:
    assert rig.scheduler.computing_since is None
    rig.hold()
    rig.scheduler.submit([work(i) for i in range(3)])
    assert rig.scheduler.computing_since is not None
    rig.scheduler.abandon(DeviceLostError("it hangs"))
    assert rig.scheduler.computing_since is None
    received = rig.inbox.wait_for(4)
    assert all(isinstance(done.error, DeviceLostError) for done in received)
    with pytest.raises(DeviceLostError, match="it hangs"):
        rig.scheduler.check_room(1, 0, float("inf"))
    rig.release()
    rig.scheduler.close(10)
    assert len(rig.inbox.received) == 4


def test_a_batch_that_cannot_be_started_fails_its_inputs_and_no_others(rig: Rig) -> None:
    rig.lanes[0].broken = 1
    rig.scheduler.submit([work(1)])
    [failed] = rig.inbox.wait_for(1)
    assert isinstance(failed.error, DeviceError)
    assert "gone" not in str(failed.error)  # what the engine says is for the log
    rig.scheduler.submit([work(2)])
    assert rig.inbox.wait_for(2)[1].error is None


def test_one_request_of_many_inputs_keeps_every_lane_busy() -> None:
    rig = Rig(num_lanes=2)
    for lane in rig.lanes:
        lane.gate.clear()
    rig.scheduler.submit([EncoderWork(1, i, [1] * 30) for i in range(16)])
    deadline = time.monotonic() + 10
    while not all(lane.batches for lane in rig.lanes) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert all(lane.batches for lane in rig.lanes)
    rig.release()
    rig.scheduler.close(10)


def test_a_listener_that_fails_does_not_end_the_lane() -> None:
    def fail(_: object, seconds: float) -> None:
        raise ValueError(seconds)

    inbox, policy = Inbox(), Policy(max_queue=9, max_queue_s=1e9, window=0.5)
    batcher = EncoderBatcher(GRID, LatencyModel(GRID, {}), policy)
    scheduler = EncoderScheduler(batcher, [ScriptedLane()], inbox.deliver, fail)
    for i in range(3):
        scheduler.submit([work(i)])
        inbox.wait_for(i + 1)
    scheduler.close(10)


def test_an_expired_input_is_delivered_as_such_and_never_run(rig: Rig) -> None:
    rig.hold()
    rig.scheduler.submit([work(1, deadline=time.monotonic() + 0.05)])
    time.sleep(0.06)
    rig.release()
    by_id = {c.request_id: c for c in rig.inbox.wait_for(2)}
    assert isinstance(by_id[1].error, DeadlineError)
    assert [1] not in rig.lanes[0].batches


def test_a_cancelled_request_is_neither_run_nor_delivered(rig: Rig) -> None:
    rig.hold()
    rig.scheduler.submit([work(1)])
    rig.scheduler.submit([work(2)])
    rig.scheduler.cancel([1])
    rig.release()
    assert {c.request_id for c in rig.inbox.wait_for(2)} == {-1, 2}
    rig.scheduler.close(10)
    assert len(rig.inbox.received) == 2


def test_closing_finishes_what_was_admitted_and_refuses_the_rest() -> None:
    rig = Rig()
    rig.hold()
    for i in range(3):
        rig.scheduler.submit([work(i)])
    rig.release()
    rig.scheduler.close(10)
    assert all(c.error is None for c in rig.inbox.wait_for(4))
    with pytest.raises(NotReadyError, match="being stopped"):
        rig.scheduler.submit([work(9)])


def test_closing_gives_up_what_still_waits_at_the_time_limit() -> None:
    rig = Rig()
    rig.hold()
    rig.scheduler.submit([work(1)])
    closing = threading.Thread(target=rig.scheduler.close, args=(0.05,))
    closing.start()
    [given_up] = rig.inbox.wait_for(1)
    assert isinstance(given_up.error, NotReadyError)
    rig.release()
    closing.join(10)
    assert {c.request_id for c in rig.inbox.wait_for(2)} == {-1, 1}


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 32), st.sampled_from(["", "cancel", "expire"])),
        min_size=1,
        max_size=30,
    ),
)
def test_every_input_ends_exactly_once(num_lanes: int, plan: list[tuple[int, int, str]]) -> None:
    rig = Rig(num_lanes)
    cancelled, expected = set(), set()
    for request_id, (num_inputs, length, fate) in enumerate(plan):
        deadline = 0.0 if fate == "expire" else float("inf")
        works = [
            EncoderWork(request_id, i, [request_id] * length, None, 0, deadline)
            for i in range(num_inputs)
        ]
        try:
            rig.scheduler.submit(works)
        except Exception:  # refused: a deadline that is over while others wait
            assert fate == "expire"
            continue
        expected |= {(request_id, i) for i in range(num_inputs)}
        if fate == "cancel":
            rig.scheduler.cancel([request_id])
            cancelled.add(request_id)
    rig.scheduler.close(10)
    ended = [(c.request_id, c.position) for c in rig.inbox.received]
    assert len(ended) == len(set(ended)), "an input ended twice"
    assert set(ended) <= expected
    assert {e for e in expected if e[0] not in cancelled} <= set(ended), "an input was lost"
    for done in rig.inbox.received:
        if done.error is None:
            assert done.logits is not None
            assert done.logits[0] == done.request_id
        else:
            assert plan[done.request_id][2] == "expire"
