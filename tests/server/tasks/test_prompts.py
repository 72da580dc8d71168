"""Prompts to tokens that the model surely knows."""

from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse_server.errors import InvalidRequestError
from enginehouse_server.sampling import SamplingSettings
from enginehouse_server.tasks import GenerateRequest, Prompt, PromptReader, SamplingWish
from enginehouse_server.tasks.prompts import sampling_settings
from enginehouse_server.text import Vocabulary
from tests.fixtures.bytes_tokenizer import write_tokenizer
from tests.server.tasks.test_generate_checks import TRAITS


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    file: Path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    write_tokenizer(file)
    return Vocabulary(file)


def reader(vocabulary: Vocabulary, missing: str) -> PromptReader:
    """Of a model that lacks the last of the tokens of a text, and all after it."""
    first = max(vocabulary.encode(missing, add_special_tokens=False))
    return PromptReader(vocabulary, None, replace(TRAITS, vocab_size=first))


def test_a_prompt_with_a_token_that_only_the_tokenizer_has_is_refused(
    vocabulary: Vocabulary,
) -> None:
    narrow = reader(vocabulary, "a")
    assert narrow.read(Prompt(text="ABC")).ids
    with pytest.raises(InvalidRequestError, match=r"\('a'\), which the tokenizer knows") as error:
        narrow.read(Prompt(text="ABCa"))
    assert error.value.field == "prompt.text"
    assert narrow.read(Prompt(text="aABC", truncate_tokens=3)).text == "ABC"


def test_a_bad_word_with_such_a_token_is_refused(vocabulary: Vocabulary) -> None:
    wish = SamplingWish(bad_words=["A", "again"])
    request = GenerateRequest(Prompt(text="A"), arrived_at=0.0, sampling=wish)
    with pytest.raises(InvalidRequestError) as error:
        sampling_settings(request, TRAITS, reader(vocabulary, "again"))
    assert error.value.field == "sampling.bad_words[1]"
    assert isinstance(sampling_settings(request, TRAITS, whole(vocabulary)), SamplingSettings)


def whole(vocabulary: Vocabulary) -> PromptReader:
    return PromptReader(vocabulary, None, replace(TRAITS, vocab_size=vocabulary.size))


def test_the_longest_token_bounds_the_characters_of_a_text(vocabulary: Vocabulary) -> None:
    text = "The quick brown fox <eos>"
    num_tokens = len(vocabulary.encode(text, add_special_tokens=False))
    assert num_tokens * vocabulary.longest_token >= len(text)
