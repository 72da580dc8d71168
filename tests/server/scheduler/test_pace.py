"""What fits into a step beside running sequences, as measured and as learned."""

import pytest

from enginehouse_server.scheduler import StepPace

# Of a step of 8 decodes 27 ms, and 1 ms for each token of a prompt beside them.
DECODES, TOKEN_S = {1: 0.020, 8: 0.027, 16: 0.053}, 0.001


def test_prompts_make_a_step_at_most_two_and_a_half_times_as_long() -> None:
    pace = StepPace(DECODES, TOKEN_S)
    assert pace.prompt_tokens_beside(8) == 40  # 27 + 40 ms, of 67.5
    assert pace.prompt_tokens_beside(16) == 64
    assert pace.prompt_tokens_beside(100) == 76, "no more is known of larger steps"


def test_steps_have_few_different_numbers_of_tokens() -> None:
    pace = StepPace(DECODES, TOKEN_S)
    assert {(n + pace.prompt_tokens_beside(n)) % 16 for n in range(2, 100)} == {0}


def test_a_stated_budget_counts_instead() -> None:
    pace = StepPace(DECODES, TOKEN_S, budget_s=0.130)
    assert pace.prompt_tokens_beside(1) == 95
    assert pace.prompt_tokens_beside(8) == 88
    assert pace.prompt_tokens_beside(16) == 64


def test_many_prompts_get_more_than_few_streams_lose() -> None:
    pace = StepPace(DECODES, TOKEN_S)
    assert pace.prompt_tokens_beside(8, num_prompts=4) == pace.prompt_tokens_beside(8)
    assert pace.prompt_tokens_beside(8, num_prompts=8) == 104  # 27 + 108 ms, of 5 times 27
    assert pace.prompt_tokens_beside(1, num_prompts=15) > 1000
    stated = StepPace(DECODES, TOKEN_S, budget_s=0.130)
    assert stated.prompt_tokens_beside(1, num_prompts=15) == 95, "what is stated holds"


def test_prompts_get_on_however_short_the_budget() -> None:
    assert StepPace(DECODES, TOKEN_S, budget_s=0.001).prompt_tokens_beside(8) == 16


@pytest.mark.parametrize("slower", [0.25, 3.0])
def test_it_learns_that_the_machine_is_another(slower: float) -> None:
    pace = StepPace(DECODES, TOKEN_S, budget_s=0.100 * slower)
    for _ in range(60):
        pace.observe(8, 0, 0.027 * slower)
        pace.observe(8, 32, (0.027 + 0.032) * slower)
    assert pace.prompt_tokens_beside(8) == pytest.approx(64, abs=16)


def test_it_learns_from_nothing() -> None:
    pace = StepPace({}, None)
    assert pace.prompt_tokens_beside(8) == 32
    for _ in range(100):
        pace.observe(8, 0, 0.027)
        pace.observe(0, 200, 0.100)
    assert pace.prompt_tokens_beside(8) == 72


def test_the_first_step_is_not_taken_for_the_pace() -> None:
    pace = StepPace({}, None, budget_s=0.100)
    pace.observe(8, 0, 3.0)  # compiles
    pace.observe(0, 200, 3.0)
    pace.observe(8, 0, 0.020)
    pace.observe(0, 200, 0.200)
    assert pace.prompt_tokens_beside(8) == 72


def test_a_slow_step_and_a_quick_one_cancel_out() -> None:
    pace = StepPace(DECODES, TOKEN_S, budget_s=0.0271 + 0.064)
    for _ in range(50):
        pace.observe(8, 0, 0.027 * 2)
        pace.observe(8, 0, 0.027 / 2)
    assert pace.prompt_tokens_beside(8) == 56


def test_one_slow_step_is_hardly_believed() -> None:
    pace = StepPace(DECODES, TOKEN_S, budget_s=0.130)
    pace.observe(8, 0, 5.0)
    pace.observe(8, 32, 5.0)
    assert pace.prompt_tokens_beside(8) >= 64


def test_a_step_as_quick_as_none_divides_nothing() -> None:
    pace = StepPace({4: 0.0}, None)
    for _ in range(50):
        pace.observe(4, 0, 0.0)
        pace.observe(4, 64, 0.0)
    assert pace.prompt_tokens_beside(4) >= 16
