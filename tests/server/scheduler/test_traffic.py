"""Random traffic over a scripted engine whose cache is far too small for it."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from enginehouse_server.errors import DeadlineError
from enginehouse_server.sampling import SamplingSettings
from enginehouse_server.scheduler import GenerateWork
from enginehouse_server.scheduler.planner import Step
from tests.fixtures.decoder import PAGED, SLOTS
from tests.fixtures.decoder_bench import POLICY, Bench

# Few different beginnings, so that many are shared.
prompts = st.builds(
    lambda prefix, length, own: [prefix] * length + [30 + own] * own,
    st.integers(0, 2),
    st.one_of(st.integers(1, 24), st.integers(16, 24)),
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
    max_new_tokens=st.integers(1, 10),
    eos_ids=st.frozensets(st.integers(0, 39), max_size=2),
    stop_ids=st.frozensets(st.integers(0, 39), max_size=1),
    num_prompt_logprobs=st.sampled_from([None, None, None, 1]),
    priority=st.sampled_from([0, 0, 0, 1, -1]),
)


class Traffic(RuleBasedStateMachine):
    """Random arrivals, cancels and deadlines on a cache that is far too small for them."""

    limits = PAGED
    scale = 1

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
        common = replace(
            asked,
            request_id=self.num_requests,
            prompt=[token for token in asked.prompt for _ in range(self.scale)],
            deadline=self.bench.now + patience,
        )
        self.bench.submit(*(replace(common, index=i) for i in range(num_sequences)))
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
    """The same over slots, whose pages are longer: so are the prompts."""

    limits = SLOTS
    scale = 4


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestSlotTraffic = SlotTraffic.TestCase
TestSlotTraffic.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
