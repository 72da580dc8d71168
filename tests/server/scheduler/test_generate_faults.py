"""The thread that steps an engine, when what it relies on fails."""

import logging
import time
from collections.abc import Sequence

import pytest

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import StepItem
from enginehouse_server.errors import DeviceError, DeviceLostError, NotReadyError
from enginehouse_server.scheduler import Emitted, GenerateScheduler
from tests.fixtures.decoder import PAGED, ScriptedDecoder
from tests.server.scheduler.test_generate import POLICY, Inbox, pace, work


class ClearedDecoder(ScriptedDecoder):
    """Notes the blocks that a step was given, and those that were cleared."""

    def __init__(self) -> None:
        super().__init__(PAGED)
        self.given: set[int] = set()
        self.cleared: set[int] = set()

    def start(self, items: Sequence[StepItem]) -> None:
        self.given = {block for item in items for block in item.blocks}
        super().start(items)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        self.cleared |= set(blocks)
        super().clear_blocks(blocks)


def test_what_a_failed_step_may_have_written_is_cleared() -> None:
    inbox, engine = Inbox(), ClearedDecoder()
    scheduler = GenerateScheduler(engine, None, POLICY, pace(), inbox.deliver, lambda _: None)
    engine.is_poisoned = True
    scheduler.submit([work(0, 9)])
    assert isinstance(inbox.ending_of(0).error, DeviceError)
    scheduler.close(10)
    assert engine.given
    assert engine.cleared == engine.given


class FaultyDecoder(ScriptedDecoder):
    """Fails once in a way that no engine should, and again when it is asked once more."""

    is_faulty = True

    def wait(self) -> Logits:
        logits = super().wait()
        if self.is_faulty:
            self.is_faulty = False
            raise ValueError("a fault of the engine's own")
        return logits


def test_an_engine_that_fails_as_none_should_does_not_stop_the_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inbox, engine = Inbox(), FaultyDecoder(PAGED)
    scheduler = GenerateScheduler(engine, None, POLICY, pace(), inbox.deliver, lambda _: None)
    with caplog.at_level(logging.CRITICAL):
        scheduler.submit([work(0)])
        assert isinstance(inbox.ending_of(0).error, DeviceError)
    scheduler.submit([work(1)])
    assert inbox.ending_of(1).reason == "length"
    scheduler.close(10)


def test_when_the_thread_fails_for_good_everyone_is_told(caplog: pytest.LogCaptureFixture) -> None:
    inbox, failures = Inbox(), [ZeroDivisionError(), ZeroDivisionError()]

    def deliver(emitted: Sequence[Emitted]) -> None:
        if failures:
            raise failures.pop()
        inbox.deliver(emitted)

    scheduler = GenerateScheduler(
        ScriptedDecoder(PAGED), None, POLICY, pace(), deliver, lambda _: None
    )
    scheduler.submit([work(0, max_new_tokens=30)])
    assert inbox.ending_of(0).reason == "cancelled" or inbox.ending_of(0).error is not None
    assert "failed for good" in caplog.text
    with pytest.raises(NotReadyError):
        scheduler.submit([work(1)])
    scheduler.close(10)


class LostDecoder(ScriptedDecoder):
    """Its device is gone; clearing or asking it anything more would be a fault."""

    def wait(self) -> Logits:
        super().wait()
        raise DeviceLostError("the device is lost")

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        raise AssertionError("a lost device is asked for something")


def test_a_lost_device_ends_everything_with_that_error_and_is_told_of_first() -> None:
    inbox, told = Inbox(), list[tuple[DeviceLostError, int]]()
    scheduler = GenerateScheduler(
        LostDecoder(PAGED),
        None,
        POLICY,
        pace(),
        inbox.deliver,
        lambda _: None,
        lambda error: told.append((error, len(inbox.endings))),
    )
    scheduler.submit([work(i) for i in range(8)])
    for i in range(8):
        assert isinstance(inbox.ending_of(i).error, DeviceLostError)
    assert [(str(error), before) for error, before in told] == [("the device is lost", 0)]
    with pytest.raises(DeviceLostError, match="the device is lost"):
        scheduler.submit([work(9)])
    scheduler.close(10)


def test_an_engine_that_hangs_is_given_up_and_what_it_says_later_is_dropped() -> None:
    inbox, engine = Inbox(), ScriptedDecoder(PAGED)
    scheduler = GenerateScheduler(engine, None, POLICY, pace(), inbox.deliver, lambda _: None)
    assert scheduler.computing_since is None
    engine.gate.clear()
    scheduler.submit([work(i) for i in range(9)])
    until = time.monotonic() + 10
    while scheduler.computing_since is None and time.monotonic() < until:
        time.sleep(0.001)
    assert scheduler.computing_since is not None
    scheduler.abandon(DeviceLostError("it hangs"))
    assert all(isinstance(inbox.ending_of(i).error, DeviceLostError) for i in range(9))
    with pytest.raises(DeviceLostError, match="it hangs"):
        scheduler.check_room([work(9)])
    engine.gate.set()
    scheduler.close(10)
    assert not inbox.faults
