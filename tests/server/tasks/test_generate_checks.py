from dataclasses import replace

import pytest

from enginehouse_server.errors import InvalidRequestError
from enginehouse_server.tasks import (
    Chat,
    GenerateRequest,
    GeneratorTraits,
    Output,
    Prompt,
    SamplingDefaults,
    SamplingWish,
    Stopping,
    StructureSpec,
)
from enginehouse_server.tasks.generate_checks import (
    check_answer_size,
    check_request,
    room_for_answer,
)
from enginehouse_server.text import Message

TRAITS = GeneratorTraits(
    vocab_size=100,
    eos_ids=frozenset({2}),
    accepts_chat=True,
    max_tokens=64,
    max_characters=500,
    max_waiting=8,
    max_sequences=4,
    max_running=8,
    max_step_tokens=32,
    cache_tokens=512,
    defaults=SamplingDefaults(),
)
GOOD = GenerateRequest(Prompt(text="a"), arrived_at=0.0)
NAN, INFINITY = float("nan"), float("inf")


def prompt(**parts: object) -> GenerateRequest:
    return replace(GOOD, prompt=Prompt(**parts))  # type: ignore[arg-type]


def sampling(**parts: object) -> GenerateRequest:
    return replace(GOOD, sampling=SamplingWish(**parts))  # type: ignore[arg-type]


def stopping(**parts: object) -> GenerateRequest:
    return replace(GOOD, stopping=Stopping(**parts))  # type: ignore[arg-type]


def structure(source: str) -> GenerateRequest:
    return replace(GOOD, structure=StructureSpec("regex", source))


def output(**parts: object) -> GenerateRequest:
    return replace(GOOD, output=Output(**parts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "field", "text"),
    [
        (prompt(), "prompt", "is empty; set prompt.text, prompt.token_ids or prompt.chat"),
        (prompt(text=""), "prompt.text", "is empty"),
        (prompt(token_ids=[]), "prompt.token_ids", "at least one token"),
        (prompt(token_ids=[1, 100]), "prompt.token_ids[1]", "is 100, which is no token"),
        (prompt(token_ids=[-1]), "prompt.token_ids[0]", "tokens are 0 to 99"),
        (
            prompt(token_ids=[1] * 65),
            "prompt.token_ids",
            "has 65 tokens; the model takes at most 64",
        ),
        (prompt(token_ids=[1, 1, 100], truncate_tokens=2), "prompt.token_ids[2]", "is 100, which"),
        (prompt(text="a" * 501), "prompt.text", "has 501 characters, more than the 500"),
        (
            prompt(text="a" * (1 << 20 | 1), truncate_tokens=2),
            "prompt.text",
            "may have 1048576: send",
        ),
        (prompt(chat=Chat([Message("user", "a" * 251)] * 2)), "prompt.chat", "has 502 characters"),
        (prompt(chat=Chat([])), "prompt.chat.messages", "at least one message"),
        (prompt(chat=Chat([Message("", "a")])), "prompt.chat.messages[0].role", "is empty"),
        (prompt(text="a", truncate_tokens=0), "prompt.truncate_tokens", "is 0; it must be 1 to 64"),
        (sampling(temperature=-1.0), "sampling.temperature", "is -1; it must be 0 to 100"),
        (sampling(temperature=NAN), "sampling.temperature", "is nan; it must be 0 to 100"),
        (sampling(temperature=INFINITY), "sampling.temperature", "is inf; it must be 0 to 100"),
        (sampling(top_k=-1), "sampling.top_k", "is -1; it must be at least 0"),
        (sampling(top_p=0.0), "sampling.top_p", "is 0; it must be above 0 and at most 1"),
        (sampling(top_p=NAN), "sampling.top_p", "is nan"),
        (sampling(min_p=1.5), "sampling.min_p", "is 1.5; it must be 0 to 1"),
        (sampling(repetition_penalty=1e-38), "sampling.repetition_penalty", "must be 0.01 to 100"),
        (sampling(repetition_penalty=NAN), "sampling.repetition_penalty", "is nan; it must be"),
        (sampling(repetition_penalty=INFINITY), "sampling.repetition_penalty", "is inf"),
        (sampling(presence_penalty=2.5), "sampling.presence_penalty", "must be -2 to 2"),
        (sampling(frequency_penalty=-3.0), "sampling.frequency_penalty", "must be -2 to 2"),
        (sampling(logit_bias={100: 1.0}), "sampling.logit_bias[100]", "is no token"),
        (sampling(logit_bias={1: NAN}), "sampling.logit_bias[1]", "is nan; it must be -100 to 100"),
        (sampling(num_sequences=0), "sampling.num_sequences", "is 0; it must be 1 to 4"),
        (sampling(num_sequences=5), "sampling.num_sequences", "is 5; it must be 1 to 4"),
        (sampling(bad_words=["a", ""]), "sampling.bad_words[1]", "is empty"),
        (stopping(max_new_tokens=0), "stopping.max_new_tokens", "is 0; it must be 1 to 63"),
        (stopping(max_new_tokens=64), "stopping.max_new_tokens", "is 64; it must be 1 to 63"),
        (stopping(min_new_tokens=-1), "stopping.min_new_tokens", "is -1; it must be 0 to 63"),
        (
            stopping(max_new_tokens=3, min_new_tokens=4),
            "stopping.min_new_tokens",
            "is 4; it must be 0 to 3",
        ),
        (stopping(stop_strings=["a"] * 17), "stopping.stop_strings", "17 entries; a request takes"),
        (stopping(stop_strings=[""]), "stopping.stop_strings[0]", "is empty"),
        (stopping(stop_strings=["a" * 513]), "stopping.stop_strings[0]", "513 characters; at most"),
        (stopping(stop_token_ids=[7, 1000]), "stopping.stop_token_ids[1]", "is 1000, which is no"),
        (structure("a" * 65537), "structure.regex", "has 65537 characters; at most 65536"),
        (output(logprobs=21), "output.logprobs", "is 21; it must be 0 to 20"),
        (output(prompt_logprobs=-1), "output.prompt_logprobs", "is -1; it must be 0 to 20"),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_its_range(
    request_: GenerateRequest, field: str, text: str
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        check_request(request_, TRAITS)
    assert error.value.field == field
    assert str(error.value).startswith(field)
    assert text in str(error.value)


def test_the_bounds_themselves_are_allowed() -> None:
    for request in (
        sampling(temperature=0.0, top_p=1.0, min_p=1.0, presence_penalty=-2.0, num_sequences=4),
        sampling(temperature=100.0, logit_bias={0: -100.0, 99: 100.0}, min_p=0.0),
        stopping(max_new_tokens=63, min_new_tokens=63, stop_strings=["a" * 512] * 16),
        output(logprobs=20, prompt_logprobs=0),
        sampling(repetition_penalty=0.01),
        prompt(text="a" * 500),
        prompt(text="a" * 501, truncate_tokens=1),
        prompt(token_ids=[100] + [1] * 99, truncate_tokens=64),  # what is left out is not looked at
        prompt(chat=Chat([Message("user", "")])),
    ):
        check_request(request, TRAITS)


def test_a_chat_without_a_template_is_refused() -> None:
    request = prompt(chat=Chat([Message("user", "a")]))
    with pytest.raises(InvalidRequestError, match="has no chat template"):
        check_request(request, replace(TRAITS, accepts_chat=False))


def test_an_answer_gets_as_much_room_as_there_is() -> None:
    assert room_for_answer(60, GOOD, TRAITS) == 4
    assert room_for_answer(60, stopping(max_new_tokens=4), TRAITS) == 4


@pytest.mark.parametrize(
    ("num_prompt", "request_", "field", "texts"),
    [
        (0, GOOD, "prompt.text", ["has no tokens"]),
        (64, GOOD, "prompt.text", ["64 tokens", "at most 63", "prompt.truncate_tokens"]),
        (60, stopping(max_new_tokens=5), "stopping.max_new_tokens", ["is 5", "has 60", "be 64"]),
        (60, stopping(min_new_tokens=5), "stopping.min_new_tokens", ["is 5", "has 60", "be 64"]),
    ],
)
def test_a_prompt_that_leaves_too_little_room_is_refused_with_the_numbers(
    num_prompt: int, request_: GenerateRequest, field: str, texts: list[str]
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        room_for_answer(num_prompt, request_, TRAITS)
    assert error.value.field == field
    assert all(text in str(error.value) for text in texts), str(error.value)


def test_log_probabilities_that_cannot_fit_the_answer_are_refused() -> None:
    request = replace(
        output(logprobs=20, prompt_logprobs=1), sampling=SamplingWish(num_sequences=4)
    )
    size = (10 * 2 + 4 * 50 * 21) * 14
    check_answer_size(10, 50, request, size)
    with pytest.raises(InvalidRequestError, match="a message has at most") as error:
        check_answer_size(10, 50, request, size - 1)
    assert error.value.field == "output.logprobs"
    assert f"about {size} bytes" in str(error.value)
    check_answer_size(10**6, 10**6, GOOD, 1)  # without them the text alone counts, when it is there
