"""The thread that steps an engine, when what it relies on fails."""

import logging
from collections.abc import Sequence

import pytest

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import StepItem
from enginehouse_server.errors import DeviceError, NotReadyError
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
