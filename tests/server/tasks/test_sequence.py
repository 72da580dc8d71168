"""A sequence's tokens as its caller gets them; and a request that is read slowly."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from prometheus_client import generate_latest

from enginehouse_server.errors import DeadlineError, DeviceError, EnginehouseError
from enginehouse_server.scheduler import Emitted, Ending, FinishReason, TokenLogprobs
from enginehouse_server.tasks import GenerateRequest, Generation, Output, Prompt, Stopping
from enginehouse_server.tasks.generate_request import PromptTokens
from enginehouse_server.tasks.sequence import SequenceAssembly
from enginehouse_server.telemetry import Metrics
from enginehouse_server.text import Vocabulary
from tests.fixtures.vocabularies import save_tokenizer

EOS = 0
REQUEST = GenerateRequest(Prompt(text="The"), arrived_at=1.0)
TELEMETRY = Metrics().of_decoder("m", 1)
_T = TypeVar("_T")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return Vocabulary(save_tokenizer("byte_level", tmp_path_factory.mktemp("tokenizer")))


def ending(reason: FinishReason | None = "length", error: EnginehouseError | None = None) -> Ending:
    return Ending(reason, error, 2, 5, 1, started_at=1.5, first_token_at=2.0, ended_at=4.0)


def fed(
    vocabulary: Vocabulary,
    text: str,
    request: GenerateRequest = REQUEST,
    reason: FinishReason = "length",
) -> SequenceAssembly:
    """A sequence that got the tokens of a text, one for each byte, and ended with the last."""
    prompt = vocabulary.encode("The", add_special_tokens=False)
    assembly = SequenceAssembly(0, request, prompt, vocabulary, frozenset({EOS}))
    tokens = [vocabulary.encode(c, add_special_tokens=False) for c in text]
    flat = [t for ids in tokens for t in ids] + ([EOS] if reason == "eos" else [])
    for i, token in enumerate(flat):
        end = ending(reason) if i == len(flat) - 1 else None
        assembly.accept(Emitted(1, 0, token, ending=end), now=float(i))
        if assembly.is_cut and not assembly.is_done:
            assembly.accept(Emitted(1, 0, None, ending=ending("stop")), now=float(i))
            break
    return assembly


def test_the_end_tells_tokens_and_times(vocabulary: Vocabulary) -> None:
    piece = fed(vocabulary, " fox").take()
    assert piece.text == " fox"
    assert piece.token_ids == []
    end = piece.end
    assert end is not None
    assert (end.reason, end.stop_token, end.stop_string) == ("length", None, None)
    assert (end.num_generated, end.num_cached_tokens, end.num_preemptions) == (4, 2, 1)
    assert (end.queue_s, end.prefill_s, end.ttft_s, end.total_s) == (0.5, 0.5, 1.0, 3.0)
    assert end.mean_itl_s == pytest.approx(2 / 3)


def test_the_token_that_ends_a_sequence_is_no_text(vocabulary: Vocabulary) -> None:
    wanted = replace(REQUEST, output=Output(token_ids=True))
    piece = fed(vocabulary, "fox", wanted, reason="eos").take()
    assert piece.text == "fox"
    assert piece.token_ids[-1] == EOS
    assert piece.end is not None
    assert (piece.end.reason, piece.end.stop_token, piece.end.num_generated) == ("eos", EOS, 4)
    kept = replace(REQUEST, output=Output(keep_special_tokens=True))
    assert fed(vocabulary, "fox", kept, reason="eos").take().text == "fox<|end|>"


@pytest.mark.parametrize(("include", "text"), [(False, " fo"), (True, " fox ju")])
def test_a_stop_string_ends_it_and_what_the_scheduler_says_of_why_does_not_count(
    vocabulary: Vocabulary, include: bool, text: str
) -> None:
    stopping = Stopping(stop_strings=["x ju"], include_stop_string=include)
    piece = fed(vocabulary, " fox jumps", replace(REQUEST, stopping=stopping)).take()
    assert piece.text == text
    assert piece.end is not None
    assert (piece.end.reason, piece.end.stop_string, piece.end.num_generated) == ("stop", "x ju", 7)


def test_a_stop_string_in_the_last_token_counts_more_than_the_limit(vocabulary: Vocabulary) -> None:
    request = replace(REQUEST, stopping=Stopping(stop_strings=["ox"]))
    piece = fed(vocabulary, " fox", request).take()
    assert piece.text == " f"
    assert piece.end is not None
    assert piece.end.reason == "stop"


def test_text_that_was_held_back_comes_with_the_end(vocabulary: Vocabulary) -> None:
    request = replace(REQUEST, stopping=Stopping(stop_strings=["ox!"]))
    assert fed(vocabulary, " fox", request).take().text == " fox"


def test_no_stop_string_counts_before_the_least_tokens(vocabulary: Vocabulary) -> None:
    stopping = Stopping(stop_strings=["ab"], min_new_tokens=4)
    assert fed(vocabulary, "ababab", replace(REQUEST, stopping=stopping)).take().text == "ab"


def test_echo_begins_with_the_prompt(vocabulary: Vocabulary) -> None:
    request = replace(REQUEST, output=Output(echo=True, token_ids=True))
    piece = fed(vocabulary, " fox", request).take()
    assert piece.text == "The fox"
    assert vocabulary.decode(piece.token_ids) == "The fox"


async def at_once(function: Callable[[], _T]) -> _T:
    return function()


def generation_of(
    vocabulary: Vocabulary, request: GenerateRequest = REQUEST, num_sequences: int = 1
) -> Generation:
    prompt = vocabulary.encode("The", add_special_tokens=False)
    return Generation(
        PromptTokens(prompt, "The"),
        vocabulary,
        [
            SequenceAssembly(i, request, prompt, vocabulary, frozenset({EOS}))
            for i in range(num_sequences)
        ],
        TELEMETRY,
        at_once,
        has_prompt_logprobs=request.output.prompt_logprobs is not None,
    )


async def test_a_slow_reader_gets_one_piece_for_all_it_missed(vocabulary: Vocabulary) -> None:
    generation = generation_of(vocabulary, num_sequences=2)
    token = vocabulary.encode("a", add_special_tokens=False)[0]
    for _ in range(1000):
        for index in (0, 1):
            generation.accept(Emitted(1, index, token), now=0.0)
    news = await generation.next()
    assert news is not None
    assert [p.text for p in news.pieces] == ["a" * 1000] * 2
    for index in (0, 1):
        generation.accept(Emitted(1, index, token, ending=ending()), now=0.0)
    last = await generation.next()
    assert last is not None
    assert [p.end is not None for p in last.pieces] == [True, True]
    assert await generation.next() is None


async def test_the_prompts_logprobs_come_with_the_first_news(vocabulary: Vocabulary) -> None:
    request = replace(REQUEST, output=Output(prompt_logprobs=1))
    generation = generation_of(vocabulary, request, num_sequences=2)
    token = vocabulary.encode("a", add_special_tokens=False)[0]
    generation.accept(Emitted(1, 1, token), now=0.0)  # the other one was faster
    waiting = asyncio.create_task(generation.next())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    num_scored = len(vocabulary.encode("The", add_special_tokens=False)) - 1
    scored = [TokenLogprobs(-1.0, [(token, -0.5)])] * num_scored
    generation.accept(Emitted(1, 0, token, prompt_logprobs=scored), now=0.0)
    news = await waiting
    assert news is not None
    assert len(news.pieces) == 2
    assert [s.top[0].text for s in news.prompt_logprobs] == ["a"] * num_scored


async def test_a_sequence_that_fails_fails_the_request(vocabulary: Vocabulary) -> None:
    generation = generation_of(vocabulary, num_sequences=2)
    failed = ending(error=DeviceError("the device is gone"))
    generation.accept(Emitted(1, 1, None, ending=failed), now=0.0)
    assert generation.is_done
    with pytest.raises(DeviceError):
        await generation.next()
    with pytest.raises(DeviceError):
        await generation.whole()


async def test_a_request_that_failed_has_not_ended_while_others_of_it_go_on(
    vocabulary: Vocabulary,
) -> None:
    generation = generation_of(vocabulary, num_sequences=2)
    failed = ending(reason=None, error=DeviceError("the device is gone"))
    generation.accept(Emitted(1, 1, None, ending=failed), now=0.0)
    assert generation.is_done
    assert not generation.has_ended


async def test_what_goes_wrong_after_a_stop_string_is_no_matter(vocabulary: Vocabulary) -> None:
    request = replace(REQUEST, stopping=Stopping(stop_strings=["a"]))
    generation = generation_of(vocabulary, request)
    token = vocabulary.encode("a", add_special_tokens=False)[0]
    assert generation.accept(Emitted(1, 0, token), now=0.0), "it is to be stopped"
    failed = ending(reason=None, error=DeviceError("the device is gone"))
    generation.accept(Emitted(1, 0, None, ending=failed), now=0.0)
    [piece] = (await generation.whole()).pieces
    assert piece.end is not None
    assert (piece.end.reason, piece.end.stop_string) == ("stop", "a")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(None, "cancelled"), (DeviceError("broken"), "failed"), (DeadlineError("late"), "expired")],
)
def test_what_has_not_ended_when_its_caller_leaves_is_counted(
    vocabulary: Vocabulary, error: EnginehouseError | None, reason: str
) -> None:
    metrics = Metrics()
    prompt = vocabulary.encode("The", add_special_tokens=False)
    generation = Generation(
        PromptTokens(prompt, "The"),
        vocabulary,
        [SequenceAssembly(i, REQUEST, prompt, vocabulary, frozenset({EOS})) for i in range(3)],
        metrics.of_decoder("m", 1),
        at_once,
        has_prompt_logprobs=False,
    )
    generation.accept(Emitted(1, 0, EOS, ending=ending("eos")), now=1.0)
    if error is not None:
        generation.accept(Emitted(1, 1, None, ending=ending(None, error)), now=2.0)
    generation.count_unfinished()
    text = generate_latest(metrics.registry).decode()
    name = 'enginehouse_sequences_ended_total{model="m",reason="%s",version="1"} %s'
    assert name % ("eos", "1.0") in text
    assert name % (reason, "2.0") in text
