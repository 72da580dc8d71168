"""The planner and what it leads to, over a scripted engine and a clock that the test moves."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from enginehouse_server.engine.decoder import DecoderLimits
from enginehouse_server.errors import DeviceError
from enginehouse_server.sampling import SamplingSettings
from tests.fixtures.decoder import PAGED, SLOTS, VOCAB, tokens_alone
from tests.fixtures.decoder_bench import PROMPT_TOKENS, Bench, work


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


def test_a_slot_that_went_another_way_is_not_taken_for_what_it_held() -> None:
    bench = Bench(replace(SLOTS, num_blocks=1))
    first, second = [*range(40)] * 2, [*range(32), *range(39, 0, -1)]
    for i, prompt in enumerate([first, second, first]):
        bench.submit(work(i, prompt=prompt))
        bench.run()
    bench.check_answers()
    assert [bench.endings[i, 0].num_cached_tokens for i in range(3)] == [0, 32, 32]


def test_prompts_that_are_scored_are_computed_whole() -> None:
    bench, prompt = Bench(replace(PAGED, num_blocks=60)), [*range(20)]
    bench.submit(work(0, prompt=prompt))
    bench.run()
    bench.submit(work(1, prompt=prompt, num_prompt_logprobs=2))
    bench.run()
    bench.check_answers()
    assert bench.endings[1, 0].num_cached_tokens == 0


@pytest.mark.parametrize("limits", [PAGED, SLOTS])
def test_what_gave_no_numbers_is_not_found_again_and_is_cleared(limits: DecoderLimits) -> None:
    bench, prompt = Bench(replace(limits, max_step_tokens=64)), [*range(34)]
    bench.submit(work(0, prompt=prompt))
    step = bench.step()
    assert step is not None
    blocks = [*step.items[0].blocks]
    logits = bench.engine.wait()
    logits[0] = np.nan
    bench.take(bench.roster.finish(step, logits, bench.now))
    assert isinstance(bench.endings.pop((0, 0)).error, DeviceError)
    del bench.works[0, 0]
    bench.roster.planner.check_integrity()
    bench.submit(work(1, prompt=prompt))
    step = bench.step()
    assert step is not None
    assert sorted(step.cleared) == sorted(blocks)
    bench.finish(step)
    bench.run()
    assert bench.endings[1, 0].num_cached_tokens == 0
    bench.check_answers()


def test_what_others_share_with_one_that_gave_no_numbers_stays() -> None:
    bench, prompt = Bench(replace(PAGED, num_blocks=60)), [*range(20)]
    bench.submit(*(work(0, prompt=prompt, index=i, max_new_tokens=9) for i in range(2)))
    while len((step := bench.step()).parts) < 2:  # type: ignore[union-attr]
        bench.finish(step)  # type: ignore[arg-type]
    assert step is not None
    first, second = (item.blocks for item in step.items)
    shared = {*first} & {*second}
    assert shared
    logits = bench.engine.wait()
    logits[1] = np.nan
    bench.take(bench.roster.finish(step, logits, bench.now))
    step = bench.step()
    assert step is not None
    assert step.cleared
    assert not shared & {*step.cleared}
    bench.finish(step)
    bench.run()
    bench.check_answers()


def test_a_prompt_that_cannot_be_scored_ends_alone() -> None:
    bench = Bench(replace(PAGED, num_blocks=60))
    bench.submit(work(0), work(1, prompt=[3, VOCAB], num_prompt_logprobs=1))
    bench.run()
    assert isinstance(bench.endings.pop((1, 0)).error, DeviceError)
    del bench.works[1, 0]
    bench.check_answers()


@pytest.mark.parametrize("is_first", [True, False])
def test_a_step_scores_no_more_than_so_many_tokens_of_all_prompts(is_first: bool) -> None:
    limits = replace(PAGED, max_tokens=200, max_step_tokens=300, num_blocks=400)
    bench = Bench(limits)
    plain = [work(0, 90)]
    scoring = [work(i, 90, num_prompt_logprobs=1) for i in range(1, 4)]
    bench.submit(*([*scoring, *plain] if is_first else [*plain, *scoring]))
    while (step := bench.step()) is not None:
        num_scored = [p.num_tokens for p in step.parts if p.num_logits > 1]
        assert sum(num_scored) <= 64
        bench.finish(step)
    assert len(bench.engine.steps[0]) >= 2, "what is not scored goes on beside"
    bench.check_answers()


def test_a_prompt_that_loses_its_place_is_scored_again() -> None:
    bench = Bench(replace(PAGED, num_blocks=9), prompt_tokens=1)
    bench.submit(work(0, 4, max_new_tokens=30))
    bench.finish(bench.step())  # type: ignore[arg-type]
    bench.submit(work(1, 18, num_prompt_logprobs=1))
    bench.run()
    bench.check_answers()
    assert bench.endings[1, 0].num_preemptions == 1


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
            assert (sum(n for _, n in items if n > 1)) <= PROMPT_TOKENS
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
    assert len(bench.tokens[0, 0]) == ending.num_generated == 4
