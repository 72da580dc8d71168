import pytest

from enginehouse_builder.certify import MIN_PROMPTS, Prompt, choose_prompts
from enginehouse_builder.errors import SpecError
from enginehouse_builder.samples import read_samples
from enginehouse_server.text import Tokenizer
from tests.conftest import Checkpoint

TEXTS = [sample.text for sample in read_samples(None).inputs]


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer(checkpoint("bert") / "tokenizer.json", 96)


def _lengths(prompts: list[Prompt]) -> list[int]:
    return [len(prompt.tokens) for prompt in prompts]


def test_the_first_prompts_are_of_all_lengths(tokenizer: Tokenizer) -> None:
    long, *short = choose_prompts(TEXTS, tokenizer, 2000, [0, 0])
    assert long.is_long
    assert not any(prompt.is_long for prompt in short)
    first = _lengths(short[:MIN_PROMPTS])
    assert min(first) < 8
    assert max(first) == 96
    assert len({prompt.tokens for prompt in short}) == len(short) > MIN_PROMPTS


@pytest.mark.parametrize(
    ("max_tokens", "lengths", "expected"),
    [
        (2000, [0], 320),
        (2000, [512, 0, 64], 560),
        (2000, [4096], 320),
        (2000, [1960], 1976),
        (2000, [1990], 1976),  # its answer goes beyond
        (64, [8], 40),
        (9, [4], 5),
    ],
)
def test_the_long_prompt_reaches_beyond_every_length_that_it_can(
    tokenizer: Tokenizer, max_tokens: int, lengths: list[int], expected: int
) -> None:
    prompts = choose_prompts(TEXTS, tokenizer, max_tokens, lengths)
    assert len(prompts[0].tokens) == expected
    assert all(len(p.tokens) + p.num_new <= max_tokens for p in prompts)
    assert all(p.num_new >= 1 for p in prompts)


def test_a_few_samples_of_ones_own_are_repeated_for_the_long_prompt(tokenizer: Tokenizer) -> None:
    prompts = choose_prompts(["one short text", "and another"], tokenizer, 2000, [100])
    assert _lengths(prompts)[0] == 320
    assert len(prompts) == 3


def test_samples_without_a_prompt_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(SpecError, match="give longer texts with --samples"):
        choose_prompts([], tokenizer, 100, [0])
