"""The planner and what it leads to, over a scripted engine and a clock that the test moves."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from enginehouse_server.engine.decoder import DecoderLimits
from enginehouse_server.errors import DeadlineError
from enginehouse_server.sampling import SamplingSettings
from enginehouse_server.scheduler import Emitted, Ending, GeneratePolicy, GenerateWork
from enginehouse_server.scheduler.planner import Step
from enginehouse_server.scheduler.roster import Arrival, Roster
from tests.fixtures.decoder import PAGED, SLOTS, ScriptedDecoder, tokens_alone

POLICY = GeneratePolicy(prefill_tokens_beside_decodes=6)
GREEDY = SamplingSettings(temperature=0)
Key = tuple[int, int]


class Bench:
    """A roster over a scripted engine, stepped by hand."""

    def __init__(self, limits: DecoderLimits, policy: GeneratePolicy = POLICY) -> None:
        self.engine = ScriptedDecoder(limits)
        self.roster = Roster(limits, policy)
        self.now = 0.0
        self.works: dict[Key, GenerateWork] = {}
        self.tokens: dict[Key, list[int]] = {}
        self.endings: dict[Key, Ending] = {}
        self.first_steps: dict[Key, int] = {}
        self.num_preemptions = self.num_reused = self.num_wasted = self.num_computed = 0

    def submit(self, *works: GenerateWork) -> None:
        for work in works:
            key = work.request_id, work.index
            self.works[key], self.tokens[key] = work, []
            self.roster.add(Arrival(work))

    def take(self, emitted: list[Emitted]) -> None:
        for one in emitted:
            key = one.request_id, one.index
            assert key not in self.endings, "a sequence ended twice"
            if one.token is not None:
                self.tokens[key].append(one.token)
                self.first_steps.setdefault(key, len(self.engine.steps))
            if one.ending is not None:
                self.endings[key] = one.ending
            if one.prompt_logprobs is not None:
                assert len(one.prompt_logprobs) == len(self.works[key].prompt) - 1

    def step(self) -> Step | None:
        step = self.roster.planner.plan()
        if step is None:
            return None
        for source, target in step.copies:
            self.engine.copy_block(source, target)
        self.engine.start(step.items)
        self.num_preemptions += step.num_preemptions
        self.num_reused += step.num_reused_tokens
        self.num_computed += sum(p.num_tokens for p in step.parts)
        self.num_wasted += step.num_repeated_tokens + self.roster.take_wasted()
        self.roster.prepare(step)
        return step

    def finish(self, step: Step) -> None:
        self.now += 1
        self.take(self.roster.finish(step, self.engine.wait(), self.now))

    def run(self, num_steps: int = 2000) -> int:
        """Steps until nothing is left; gives how many it took."""
        for n in range(num_steps):
            step = self.step()
            if step is None:
                assert not self.roster.planner.num_live, "sequences wait, and none can run"
                return n
            self.finish(step)
            self.roster.planner.check_integrity()
        raise AssertionError(f"not done after {num_steps} steps")

    def check_answers(self) -> None:
        """Every sequence ended, and said what it says alone, or as far as it came."""
        assert set(self.endings) == set(self.works)
        for key, ending in self.endings.items():
            alone = tokens_alone(self.works[key])
            assert ending.num_generated == len(self.tokens[key])
            if ending.reason in {"eos", "stop", "length"}:
                assert self.tokens[key] == alone
            else:
                assert self.tokens[key] == alone[: len(self.tokens[key])]
        assert self.roster.planner.num_blocks_used == 0


def work(request_id: int, length: int = 5, **changes: object) -> GenerateWork:
    prompt = [(request_id * 7 + i) % 40 for i in range(length)]
    base = GenerateWork(request_id, 0, prompt, GREEDY, max_new_tokens=4)
    return replace(base, **changes)  # type: ignore[arg-type]


# Few different beginnings, so that many are shared.
prompts = st.builds(
    lambda prefix, length, own: [prefix] * length + [30 + own] * own,
    st.integers(0, 2),
    st.integers(1, 26),
    st.integers(0, 2),
)
asked_works = st.builds(
    GenerateWork,
    request_id=st.just(0),
    index=st.just(0),
    prompt=prompts,
    sampling=st.builds(
        SamplingSettings,
        temperature=st.sampled_from([0.0, 1.0]),
        frequency_penalty=st.sampled_from([0.0, 1.0]),
        seed=st.integers(0, 3),
    ),
    max_new_tokens=st.integers(1, 12),
    eos_ids=st.frozensets(st.integers(0, 39), max_size=2),
    stop_ids=st.frozensets(st.integers(0, 39), max_size=1),
    num_prompt_logprobs=st.sampled_from([None, None, None, 1]),
    priority=st.sampled_from([0, 0, 0, 1, -1]),
)


class Traffic(RuleBasedStateMachine):
    """Random arrivals, cancels and deadlines on a cache that is far too small for them."""

    limits = PAGED

    @initialize(reuses=st.booleans())
    def begin(self, reuses: bool) -> None:
        self.bench = Bench(self.limits, replace(POLICY, reuses_prefixes=reuses))
        self.step_in_flight: Step | None = None
        self.num_requests = 0

    @rule(
        asked=asked_works,
        num_sequences=st.integers(1, 3),
        patience=st.sampled_from([float("inf"), float("inf"), 15.0]),
    )
    def arrive(self, asked: GenerateWork, num_sequences: int, patience: float) -> None:
        deadline = self.bench.now + patience
        self.bench.submit(
            *(
                replace(asked, request_id=self.num_requests, index=i, deadline=deadline)
                for i in range(num_sequences)
            )
        )
        self.num_requests += 1

    @precondition(lambda self: self.num_requests)
    @rule(data=st.data(), index=st.sampled_from([None, 0, 1]))
    def cancel(self, data: st.DataObject, index: int | None) -> None:
        request_id = data.draw(st.integers(0, self.num_requests - 1))
        bench = self.bench
        bench.take(bench.roster.cancel(request_id, index, "cancelled", bench.now))

    @rule()
    def start(self) -> None:
        if self.step_in_flight is None:
            self.bench.take(self.bench.roster.expire(self.bench.now))
            self.step_in_flight = self.bench.step()

    @rule()
    def finish(self) -> None:
        if self.step_in_flight is not None:
            self.bench.finish(self.step_in_flight)
            self.step_in_flight = None

    @rule(num_steps=st.integers(1, 8))
    def run_a_while(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.finish()
            self.start()

    @invariant()
    def blocks_add_up(self) -> None:
        self.bench.roster.planner.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.finish()
        self.bench.run()
        self.bench.check_answers()
        for key, ending in self.bench.endings.items():
            if isinstance(ending.error, DeadlineError):
                assert ending.ended_at >= self.bench.works[key].deadline
            else:
                assert ending.error is None


class SlotTraffic(Traffic):
    limits = SLOTS


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestSlotTraffic = SlotTraffic.TestCase
TestSlotTraffic.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("limits", [PAGED, SLOTS])
def test_answers_in_a_batch_are_those_alone(limits: DecoderLimits) -> None:
    bench = Bench(limits)
    for i in range(12):
        bench.submit(work(i, 1 + 2 * i, max_new_tokens=9))
    bench.run()
    bench.check_answers()


def test_what_does_not_fit_together_is_preempted_and_says_the_same() -> None:
    bench = Bench(PAGED)
    for i in range(5):
        bench.submit(work(i, 9, max_new_tokens=30))
    bench.run()
    bench.check_answers()
    assert bench.num_preemptions > 0
    assert bench.num_wasted > 0
    assert sum(e.num_preemptions for e in bench.endings.values()) == bench.num_preemptions
    assert bench.endings[0, 0].num_preemptions == 0, "the first in order never gives way"


def test_the_lowest_priority_gives_way_first() -> None:
    bench = Bench(PAGED)
    bench.submit(work(0, 9, max_new_tokens=30, priority=-1))
    bench.finish(bench.step())  # type: ignore[arg-type]
    for i in range(1, 4):
        bench.submit(work(i, 9, max_new_tokens=20))
    bench.run()
    bench.check_answers()
    assert bench.endings[0, 0].num_preemptions > 0
    assert bench.endings[0, 0].ended_at == max(e.ended_at for e in bench.endings.values())


def test_the_higher_priority_begins_first() -> None:
    bench = Bench(replace(PAGED, max_sequences=1))
    bench.submit(work(0), work(1, priority=0), work(2, priority=5))
    bench.run()
    order = sorted(bench.endings, key=lambda key: bench.endings[key].ended_at)
    assert order == [(2, 0), (0, 0), (1, 0)]


@pytest.mark.parametrize("limits", [replace(PAGED, num_blocks=60), SLOTS])
def test_a_prompt_that_was_there_before_is_not_computed_again(limits: DecoderLimits) -> None:
    bench, prompt = Bench(limits), [*range(35)]
    bench.submit(work(0, prompt=prompt))
    bench.run()
    before = bench.num_computed
    bench.submit(work(1, prompt=[*prompt, 39]))
    bench.run()
    bench.check_answers()
    assert bench.endings[0, 0].num_cached_tokens == 0
    assert bench.endings[1, 0].num_cached_tokens == 32
    assert bench.num_computed - before == 4 + 3  # what is left of the prompt, and the answer's


@pytest.mark.parametrize("limits", [replace(PAGED, num_blocks=60), SLOTS])
def test_the_sequences_of_a_request_share_their_prompt(limits: DecoderLimits) -> None:
    bench, prompt = Bench(limits), [*range(34)]
    sampled = SamplingSettings(temperature=1.0)
    bench.submit(*(work(0, prompt=prompt, index=i, sampling=sampled) for i in range(3)))
    bench.run()
    bench.check_answers()
    assert [bench.endings[0, i].num_cached_tokens for i in range(3)] == [0, 32, 32]


def test_a_slot_that_still_runs_is_copied_and_one_that_was_left_is_used_again() -> None:
    bench, prompt = Bench(SLOTS), [*range(34)]
    bench.submit(*(work(0, prompt=prompt, index=i) for i in range(2)))
    bench.run()
    assert bench.engine.num_copies == 1
    bench.submit(work(1, prompt=prompt))
    bench.run()
    assert bench.engine.num_copies == 1
    assert bench.endings[1, 0].num_cached_tokens == 32
    bench.check_answers()


def test_prompts_that_are_scored_are_computed_whole() -> None:
    bench, prompt = Bench(replace(PAGED, num_blocks=60)), [*range(20)]
    bench.submit(work(0, prompt=prompt))
    bench.run()
    bench.submit(work(1, prompt=prompt, num_prompt_logprobs=2))
    bench.run()
    bench.check_answers()
    assert bench.endings[1, 0].num_cached_tokens == 0


def test_running_streams_never_wait_for_more_than_the_budget_of_prompts() -> None:
    bench = Bench(replace(PAGED, num_blocks=100))
    bench.submit(work(0, 3, max_new_tokens=30))
    bench.finish(bench.step())  # type: ignore[arg-type]
    for i in range(1, 4):
        bench.submit(work(i, 30))
    while (step := bench.step()) is not None:
        bench.finish(step)
        if (0, 0) not in bench.endings:
            items = bench.engine.steps[-1]
            assert (sum(n for _, n in items if n > 1)) <= POLICY.prefill_tokens_beside_decodes
            assert any(n == 1 for _, n in items), "the stream waited"
    bench.check_answers()


def test_an_engine_that_does_not_mix_takes_turns() -> None:
    bench = Bench(SLOTS)
    bench.submit(work(0, 3, max_new_tokens=30))
    bench.finish(bench.step())  # type: ignore[arg-type]
    bench.submit(work(1, 40, max_new_tokens=2))
    bench.run()
    kinds = ["chunk" if step[0][1] > 1 else "decode" for step in bench.engine.steps[1:]]
    until = max(i for i, kind in enumerate(kinds) if kind == "chunk")
    assert all(a != b for a, b in pairwise(kinds[: until + 1]))


@pytest.mark.parametrize("mixes", [True, False])
def test_a_short_prompt_does_not_wait_for_a_long_one_nor_the_reverse(mixes: bool) -> None:
    limits = replace(PAGED if mixes else SLOTS, max_tokens=900, max_step_tokens=8)
    limits = replace(limits, num_blocks=300, block_size=4 if mixes else 900, max_sequences=4)
    bench = Bench(limits)
    bench.submit(work(0, 400, max_new_tokens=1))
    for i in range(1, 40):
        bench.submit(work(i, 6, max_new_tokens=1))
        for _ in range(2):
            if (step := bench.step()) is not None:
                bench.finish(step)
    bench.run()
    bench.check_answers()
    assert bench.first_steps[1, 0] <= 6, "the short one waited for the long one"
    assert bench.first_steps[0, 0] <= 2 * 400 / 8 + 20, "the long one got less than its half"


def test_a_cancelled_sequence_is_gone_before_the_next_step() -> None:
    bench = Bench(PAGED)
    bench.submit(work(0, max_new_tokens=30), work(1, max_new_tokens=30))
    for _ in range(3):
        bench.finish(bench.step())  # type: ignore[arg-type]
    step = bench.step()
    assert step is not None
    bench.take(bench.roster.cancel(0, None, "cancelled", bench.now))
    assert bench.endings[0, 0].reason == "cancelled"
    bench.finish(step)
    assert bench.roster.take_wasted() == 5 + 2 + 1  # prompt, answer, and what was in flight
    assert len(bench.step().parts) == 1  # type: ignore[union-attr]


def test_what_a_stop_string_ended_is_not_wasted() -> None:
    bench = Bench(PAGED)
    bench.submit(work(0, max_new_tokens=30))
    bench.finish(bench.step())  # type: ignore[arg-type]
    [emitted] = bench.roster.cancel(0, 0, "stop", bench.now)
    assert emitted.ending is not None
    assert emitted.ending.reason == "stop"
    assert bench.roster.take_wasted() == 0


@pytest.mark.parametrize(("field", "reason"), [("eos_ids", "eos"), ("stop_ids", "stop")])
def test_a_token_that_ends_is_the_last(field: str, reason: str) -> None:
    asked = work(0, max_new_tokens=10)
    third = tokens_alone(asked)[2]
    bench = Bench(PAGED)
    bench.submit(replace(asked, **{field: frozenset({third})}))  # type: ignore[arg-type]
    bench.run()
    assert bench.endings[0, 0].reason == reason
    assert bench.tokens[0, 0] == tokens_alone(asked)[: tokens_alone(asked).index(third) + 1]


def test_times_of_an_ending_are_in_order() -> None:
    bench = Bench(PAGED)
    bench.submit(work(0, 30))
    bench.run()
    ending = bench.endings[0, 0]
    assert ending.first_token_at <= ending.ended_at
    assert Counter(bench.tokens[0, 0]).total() == ending.num_generated == 4
