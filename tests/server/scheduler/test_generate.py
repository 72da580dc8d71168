"""The thread that steps an engine: what it promises to callers of other threads."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse_server.errors import (
    DeadlineError,
    DeviceError,
    EnginehouseError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    UnsupportedError,
)
from enginehouse_server.sampling import SamplingSettings, StructureCompiler
from enginehouse_server.scheduler import (
    Emitted,
    Ending,
    FinishReason,
    GeneratePolicy,
    GenerateScheduler,
    GenerateWork,
    StepFigures,
    StepPace,
    StructureSpec,
)
from tests.fixtures.bytes_tokenizer import EOS, write_tokenizer
from tests.fixtures.decoder import PAGED, VOCAB, ScriptedDecoder, tokens_alone

Key = tuple[int, int]
POLICY = GeneratePolicy(max_queue=8, max_queue_s=1e9)


def pace() -> StepPace:
    return StepPace({}, None)


class Inbox:
    """Collects what is delivered, and refuses a second ending."""

    def __init__(self) -> None:
        self.tokens: dict[Key, list[int]] = {}
        self.endings: dict[Key, Ending] = {}
        self.faults: list[str] = []
        self._changed = threading.Condition()

    def deliver(self, emitted: Sequence[Emitted]) -> None:
        with self._changed:
            for one in emitted:
                key = one.request_id, one.index
                if key in self.endings:
                    self.faults.append(f"{key} was told of after its end")
                if one.token is not None:
                    self.tokens.setdefault(key, []).append(one.token)
                if one.ending is not None:
                    self.endings[key] = one.ending
            self._changed.notify_all()

    def ending_of(self, request_id: int, index: int = 0) -> Ending:
        key = request_id, index
        with self._changed:
            assert self._changed.wait_for(lambda: key in self.endings, 10), f"{key} did not end"
        assert not self.faults
        return self.endings[key]

    def wait_for_token(self, request_id: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: (request_id, 0) in self.tokens, 10)


class Rig:
    """A scheduler over a scripted engine."""

    def __init__(
        self,
        policy: GeneratePolicy = POLICY,
        compiler: StructureCompiler | None = None,
        vocab_size: int = VOCAB,
    ) -> None:
        self.engine, self.inbox = ScriptedDecoder(PAGED, vocab_size), Inbox()
        self.figures: list[StepFigures] = []
        self.scheduler = GenerateScheduler(
            self.engine, compiler, policy, pace(), self.inbox.deliver, self.figures.append
        )

    def hold(self, *works: GenerateWork) -> None:
        """Lets a step with these works begin, and not end."""
        self.engine.gate.clear()
        num_steps = len(self.engine.steps)
        self.scheduler.submit(works)
        until = time.monotonic() + 10
        while len(self.engine.steps) == num_steps and time.monotonic() < until:
            time.sleep(0.001)
        assert len(self.engine.steps) == num_steps + 1

    def release(self) -> None:
        self.engine.gate.set()


def work(request_id: int, length: int = 5, **changes: object) -> GenerateWork:
    prompt = [(request_id * 7 + i) % 40 for i in range(length)]
    base = GenerateWork(request_id, 0, prompt, SamplingSettings(temperature=0), max_new_tokens=4)
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.release()
    rig.scheduler.close(10)
    assert not rig.inbox.faults


def test_each_sequence_gets_its_own_tokens_and_times(rig: Rig) -> None:
    works = [work(i, 1 + 2 * i) for i in range(6)]
    for one in works:
        rig.scheduler.submit([one])
    for one in works:
        ending = rig.inbox.ending_of(one.request_id)
        assert ending.reason == "length"
        assert ending.started_at <= ending.first_token_at <= ending.ended_at
        assert rig.inbox.tokens[one.request_id, 0] == tokens_alone(one)


def test_what_arrives_during_a_step_is_in_the_next(rig: Rig) -> None:
    rig.hold(work(0, max_new_tokens=20))
    rig.scheduler.submit([work(1)])
    rig.release()
    rig.inbox.ending_of(1)
    assert len(rig.engine.steps[1]) == 2


def test_a_cancelled_sequence_is_in_no_further_step(rig: Rig) -> None:
    rig.hold(work(0, max_new_tokens=20), work(0, index=1, max_new_tokens=20))
    rig.scheduler.cancel(0, 1)
    rig.release()
    assert rig.inbox.ending_of(0, 1).reason == "cancelled"
    assert rig.inbox.ending_of(0, 0).reason == "length"
    assert all(len(step) == 1 for step in rig.engine.steps[1:])


def test_a_sequence_that_expires_ends_between_steps(rig: Rig) -> None:
    rig.hold(work(0, max_new_tokens=30, deadline=time.monotonic() + 0.02))
    time.sleep(0.03)
    rig.release()
    assert isinstance(rig.inbox.ending_of(0).error, DeadlineError)
    assert len(rig.engine.steps) <= 2


def test_a_failed_step_fails_all_in_flight_and_no_later_ones(rig: Rig) -> None:
    rig.hold(*(work(0, 9, index=i, max_new_tokens=30) for i in range(7)))
    rig.scheduler.submit([work(1)])
    rig.engine.is_poisoned = True
    rig.release()
    for key in [*((0, i) for i in range(7)), (1, 0)]:
        assert isinstance(rig.inbox.ending_of(*key).error, DeviceError)
    again = work(2, prompt=work(0, 9).prompt)
    rig.scheduler.submit([again])
    assert rig.inbox.ending_of(2).num_cached_tokens == 0, "the cache was lost with the step"
    assert rig.inbox.tokens[2, 0] == tokens_alone(again)


def test_a_fault_of_our_own_ends_what_is_in_flight_too(caplog: pytest.LogCaptureFixture) -> None:
    inbox, engine = Inbox(), ScriptedDecoder(PAGED)
    is_broken = threading.Event()
    is_broken.set()

    def on_step(figures: StepFigures) -> None:
        if is_broken.is_set():
            raise ZeroDivisionError(figures)

    scheduler = GenerateScheduler(engine, None, POLICY, pace(), inbox.deliver, on_step)
    with caplog.at_level(logging.CRITICAL):
        scheduler.submit([work(0, max_new_tokens=30)])
        assert isinstance(inbox.ending_of(0).error, DeviceError)
    is_broken.clear()
    scheduler.submit([work(1)])
    assert inbox.ending_of(1).reason == "length"
    scheduler.close(10)


def test_what_could_never_end_is_refused_with_the_figures(rig: Rig) -> None:
    with pytest.raises(InvalidRequestError, match="are 41, the model takes 40"):
        rig.scheduler.submit([work(0, 31, max_new_tokens=10)])
    small = replace(PAGED, num_blocks=3)
    scheduler = GenerateScheduler(
        ScriptedDecoder(small), None, POLICY, pace(), rig.inbox.deliver, rig.figures.append
    )
    with pytest.raises(InvalidRequestError, match="are 14, the cache holds 12"):
        scheduler.submit([work(0, 5, max_new_tokens=9)])
    scheduler.submit([work(1, 5, max_new_tokens=8)])
    assert rig.inbox.ending_of(1).reason == "length"
    scheduler.close(10)


def test_a_full_queue_refuses_with_a_hint(rig: Rig) -> None:
    rig.hold(*(work(10 + i, max_new_tokens=30) for i in range(3)))
    rig.scheduler.submit([work(1, index=i) for i in range(8)])
    with pytest.raises(OverloadedError, match="8 sequences wait and 1 more would exceed"):
        rig.scheduler.submit([work(2)])
    with pytest.raises(OverloadedError):
        rig.scheduler.check_room([work(2)])


def test_a_deadline_that_the_predicted_wait_would_miss_is_refused_at_once() -> None:
    rig = Rig(replace(POLICY, max_queue=100))
    for i in range(3):  # learns that a sequence takes a while
        rig.hold(work(i, max_new_tokens=1))
        time.sleep(0.05)
        rig.release()
        rig.inbox.ending_of(i)
    rig.hold(*(work(10, index=i, max_new_tokens=30) for i in range(5)))
    rig.scheduler.submit([work(11, index=i) for i in range(20)])
    soon = time.monotonic() + 0.01
    with pytest.raises(OverloadedError, match="time left to the deadline") as raised:
        rig.scheduler.submit([work(12, deadline=soon)])
    assert raised.value.retry_after_s > 0
    rig.scheduler.submit([work(13)])
    rig.release()
    rig.scheduler.close(10)


@pytest.mark.parametrize("reason", ["stop", "cancelled"])
def test_the_pace_is_learned_from_all_that_leave_their_place(
    rig: Rig, reason: FinishReason
) -> None:
    for i in range(5):
        rig.hold(work(i, max_new_tokens=30))
        time.sleep(0.02)
        rig.scheduler.cancel(i, 0, reason)
        rig.release()
        rig.inbox.ending_of(i)
    rig.hold(work(10, max_new_tokens=30))
    rig.scheduler.submit([work(11, max_new_tokens=30, index=i) for i in range(8)])
    with pytest.raises(OverloadedError) as raised:
        rig.scheduler.submit([work(12)])
    busy_s = sum(f.seconds for f in rig.figures)
    assert 0 < raised.value.retry_after_s < 9 * busy_s / 3, "as if hardly any had ended"


def test_figures_of_the_steps_add_up(rig: Rig) -> None:
    for i in range(4):
        rig.scheduler.submit([work(i, 9)])
    for i in range(4):
        rig.inbox.ending_of(i)
    rig.scheduler.close(10)
    last = rig.figures[-1]
    assert (last.num_running, last.num_waiting, last.num_blocks_used) == (0, 0, 0)
    num_computed = sum(f.num_prompt_tokens + f.num_decode_tokens for f in rig.figures)
    assert num_computed == sum(n for step in rig.engine.steps for _, n in step)
    assert all(f.seconds > 0 for f in rig.figures)


def test_closing_finishes_what_was_admitted_and_refuses_the_rest() -> None:
    rig = Rig()
    rig.scheduler.submit([work(0, index=i, max_new_tokens=20) for i in range(8)])
    rig.scheduler.close(10)
    assert all(rig.inbox.ending_of(0, i).reason == "length" for i in range(8))
    with pytest.raises(NotReadyError, match="being stopped"):
        rig.scheduler.submit([work(9)])


def test_closing_gives_up_what_is_left_even_if_the_engine_hangs() -> None:
    rig = Rig()
    rig.scheduler.submit([work(0, max_new_tokens=30)])
    rig.inbox.wait_for_token(0)
    rig.scheduler.cancel(0)
    rig.inbox.ending_of(0)
    rig.hold(work(1, max_new_tokens=30))
    rig.scheduler.submit([work(2)])
    rig.scheduler.close(0.01)
    assert isinstance(rig.inbox.ending_of(1).error, NotReadyError)
    assert isinstance(rig.inbox.ending_of(2).error, NotReadyError)
    rig.release()
    time.sleep(0.05)
    assert not rig.inbox.faults


def test_closing_keeps_the_answers_that_have_begun() -> None:
    rig = Rig()
    is_slow = threading.Event()
    deliver = rig.inbox.deliver

    def slowly(emitted: Sequence[Emitted]) -> None:
        deliver(emitted)
        is_slow.wait(0.02)

    scheduler = GenerateScheduler(
        ScriptedDecoder(PAGED), None, POLICY, pace(), slowly, rig.figures.append
    )
    scheduler.submit([work(0, max_new_tokens=35)])
    rig.inbox.wait_for_token(0)
    scheduler.close(0.01)
    ending = rig.inbox.ending_of(0)
    assert ending.reason == "cancelled"
    assert 0 < ending.num_generated == len(rig.inbox.tokens[0, 0]) < 35
    rig.scheduler.close(10)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> StructureCompiler:
    file: Path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    write_tokenizer(file)
    return StructureCompiler(file, 320, [EOS])


def test_a_complete_structure_ends_the_sequence(compiler: StructureCompiler) -> None:
    rig = Rig(compiler=compiler, vocab_size=320)
    spec = StructureSpec("choices", '["#$", "$#$"]')
    sampled = SamplingSettings(temperature=1.0, seed=3)
    rig.scheduler.submit([work(0, structure=spec, sampling=sampled, max_new_tokens=20)])
    ending = rig.inbox.ending_of(0)
    assert ending.reason == "eos"
    assert rig.inbox.tokens[0, 0][-1] == EOS
    assert ending.num_generated in {3, 4}
    with pytest.raises(InvalidRequestError, match="unclosed"):
        rig.scheduler.submit([work(1, structure=StructureSpec("regex", "(a"))])
    rig.scheduler.close(10)


def test_a_structure_is_refused_where_the_tokenizer_serves_none(rig: Rig) -> None:
    with pytest.raises(UnsupportedError, match="structured output"):
        rig.scheduler.submit([work(0, structure=StructureSpec("regex", "a"))])


fates = st.sampled_from(["", "", "cancel", "expire", "poison"])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 25), st.integers(1, 12), fates),
        min_size=1,
        max_size=15,
    ),
    st.sampled_from([0.0, 10.0]),
)
def test_every_sequence_ends_exactly_once(
    plan: list[tuple[int, int, int, str]], timeout_s: float
) -> None:
    rig = Rig()
    admitted: dict[Key, GenerateWork] = {}
    for request_id, (num_sequences, length, num_new, fate) in enumerate(plan):
        deadline = time.monotonic() + 0.001 if fate == "expire" else float("inf")
        base = work(request_id, length, max_new_tokens=num_new, deadline=deadline)
        works = [replace(base, index=i) for i in range(num_sequences)]
        try:
            rig.scheduler.submit(works)
        except EnginehouseError as error:
            assert isinstance(error, OverloadedError)  # noqa: PT017
            continue
        admitted |= {(w.request_id, w.index): w for w in works}
        if fate == "cancel":
            rig.scheduler.cancel(request_id)
        rig.engine.is_poisoned |= fate == "poison"
    rig.scheduler.close(timeout_s)
    assert not rig.inbox.faults
    assert set(rig.inbox.endings) == set(admitted)
    for key, ending in rig.inbox.endings.items():
        tokens, alone = rig.inbox.tokens.get(key, []), tokens_alone(admitted[key])
        assert tokens == alone[: len(tokens)]
        assert len(tokens) == ending.num_generated
        assert (ending.reason == "length") == (len(tokens) == len(alone))
