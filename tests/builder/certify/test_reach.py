from collections.abc import Callable

import pytest

from enginehouse_builder.certify import Budget, OriginalPace, Price, reach_of


def _price(seconds_per_token: float, bytes_per_token: int = 0) -> Callable[[int, int], Price]:
    def price(num_prompt: int, max_tokens: int) -> Price:
        return Price(seconds_per_token * num_prompt, bytes_per_token * num_prompt)

    return price


@pytest.mark.parametrize(
    ("lengths", "seconds", "expected"),
    [
        ([512, 4096], 5000, 8192),
        ([512, 4096], 4000, 4096),  # 4096 + 48 tokens are too dear, 512 + 48 are not
        ([512, 4096], 500, 512),
        ([0, 200], 1, 8192),  # its prompt is asked anyway
        ([], 1, 8192),
        ([8192, 9000], 1, 8192),  # never reached
    ],
)
def test_sequences_end_at_the_first_threshold_that_is_too_dear_to_look_past(
    lengths: list[int], seconds: float, expected: int
) -> None:
    found = reach_of(8192, lengths, _price(1.0), Budget(seconds, None))
    assert found.max_tokens == expected
    assert bool(found.reason) == (expected < 8192)


def test_the_reason_names_time_limit_and_remedy() -> None:
    found = reach_of(8192, [4096], _price(1.0), Budget(120, None))
    assert found.reason.startswith("4096 tokens instead of 8192: ")
    assert "a prompt of 4144 tokens would take about 69.1 minutes, and 2.0 are allowed" in (
        found.reason
    )
    assert "--certify-minutes" in found.reason


def test_memory_forbids_as_well_as_time() -> None:
    found = reach_of(8192, [4096], _price(0.0, 1_000_000), Budget(60, 4_000_000_000))
    assert found.max_tokens == 4096
    assert "4.1 GB of memory, and 4.0 GB are left" in found.reason


def test_a_pace_foretells_a_longer_prompt() -> None:
    pace = OriginalPace(token_s=0.01, context_s=1e-5, step_s=0.05, has_cache=True)
    # Two pieces of 512 tokens, then 2 tokens with 1024 before them.
    expected = 512 * (0.01 + 512e-5) + 512 * (0.01 + 1024e-5) + 2 * (0.05 + 1024e-5)
    assert pace.seconds(1024, 2) == pytest.approx(expected)


def test_without_a_cache_everything_is_read_again_for_each_token() -> None:
    pace = OriginalPace(token_s=0.01, context_s=0.0, step_s=0.0, has_cache=False)
    assert pace.seconds(600, 3) == pytest.approx(0.01 * (512 + 600 + 601 + 602))
