"""What is generated, written to a reader that a test paces."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar, cast

import pytest

from enginehouse.v1 import generate_pb2 as generate_pb
from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_server.errors import OverloadedError
from enginehouse_server.repository import Entry
from enginehouse_server.rpc.call import Context
from enginehouse_server.rpc.generating import whole_answer, write_pieces
from enginehouse_server.scheduler import Emitted, Ending
from enginehouse_server.scheduler.generate_work import TokenLogprobs
from enginehouse_server.tasks import GenerateRequest, Generation, Output, Prompt, PromptTokens
from enginehouse_server.tasks.sequence import SequenceAssembly
from enginehouse_server.telemetry import Metrics
from enginehouse_server.text import Vocabulary
from tests.fixtures.vocabularies import save_tokenizer

_T = TypeVar("_T")
ENTRY = cast(Entry, SimpleNamespace(model="m", version=1))
NUM_TOP = 20
SCORES = TokenLogprobs(-1.5, [(token, -2.0 - token) for token in range(NUM_TOP)])
ENDING = Ending("length", None, 0, 5, 0, started_at=0.0, first_token_at=0.0, ended_at=0.0)


class Reader:
    """The other end of a stream: takes a message when it is told to."""

    def __init__(self) -> None:
        self.reads = asyncio.Semaphore(0)
        self.texts: list[list[str]] = []
        self.scored: list[list[generate_pb.TokenLogprob]] = []

    async def write(self, message: pb.GenerateStreamResponse) -> None:
        self.texts.append([sequence.text for sequence in message.sequences])
        self.scored.append([one for sequence in message.sequences for one in sequence.logprobs])
        await self.reads.acquire()


class Aside:
    """Runs on another thread what it is given, and counts it."""

    def __init__(self) -> None:
        self.num_calls = 0

    async def __call__(self, function: Callable[[], _T]) -> _T:
        self.num_calls += 1
        return await asyncio.to_thread(function)


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    return Vocabulary(save_tokenizer("byte_level", tmp_path))


def _generation(
    vocabulary: Vocabulary, aside: Aside | None = None, num_logprobs: int | None = None
) -> Generation:
    output = Output(logprobs=num_logprobs)
    request = GenerateRequest(Prompt(text="The"), arrived_at=0.0, output=output)
    prompt = vocabulary.encode("The", add_special_tokens=False)
    sequences = [SequenceAssembly(i, request, prompt, vocabulary, frozenset()) for i in range(2)]
    return Generation(
        PromptTokens(prompt, "The"),
        vocabulary,
        sequences,
        Metrics().of_decoder("m", 1),
        aside or Aside(),
        has_prompt_logprobs=False,
    )


async def test_what_comes_while_a_message_is_written_goes_out_in_the_next_one(
    vocabulary: Vocabulary,
) -> None:
    reader, generation = Reader(), _generation(vocabulary)
    [token] = vocabulary.encode("a", add_special_tokens=False)
    writing = asyncio.create_task(write_pieces(cast(Context, reader), ENTRY, generation, 10.0))
    generation.accept(Emitted(1, 0, token), now=0.0)
    await asyncio.sleep(0.01)
    assert reader.texts == [["a"]]
    for _ in range(3):
        for index in (0, 1):
            generation.accept(Emitted(1, index, token), now=0.0)
            await asyncio.sleep(0)
    assert reader.texts == [["a"]]
    reader.reads.release()
    await asyncio.sleep(0.01)
    assert reader.texts == [["a"], ["aaa", "aaa"]]
    for index in (0, 1):
        generation.accept(Emitted(1, index, token, ending=ENDING), now=0.0)
    for _ in range(2):
        reader.reads.release()
    await asyncio.wait_for(writing, 5)
    assert reader.texts == [["a"], ["aaa", "aaa"], ["a", "a"]]


async def test_a_reader_that_takes_nothing_is_given_up(vocabulary: Vocabulary) -> None:
    generation = _generation(vocabulary)
    [token] = vocabulary.encode("a", add_special_tokens=False)
    generation.accept(Emitted(1, 0, token), now=0.0)
    with pytest.raises(OverloadedError, match=r"was not read for 0\.01 s"):
        await write_pieces(cast(Context, Reader()), ENTRY, generation, 0.01)


async def test_many_log_probabilities_that_waited_for_a_reader_are_put_together_off_the_event_loop(
    vocabulary: Vocabulary,
) -> None:
    reader, aside = Reader(), Aside()
    generation = _generation(vocabulary, aside, NUM_TOP)
    [token] = vocabulary.encode("a", add_special_tokens=False)
    writing = asyncio.create_task(write_pieces(cast(Context, reader), ENTRY, generation, 10.0))
    generation.accept(Emitted(1, 0, token, SCORES), now=0.0)
    await asyncio.sleep(0.01)
    assert (len(reader.scored[0]), aside.num_calls) == (1, 0)  # one token's are no trip worth
    for _ in range(30):
        generation.accept(Emitted(1, 0, token, SCORES), now=0.0)
    for index in (0, 1):
        generation.accept(Emitted(1, index, token, SCORES, ending=ENDING), now=0.0)
    for _ in range(2):
        reader.reads.release()
    await asyncio.wait_for(writing, 5)
    assert (len(reader.scored[1]), aside.num_calls) == (32, 1)
    for scored in reader.scored[1]:
        assert (scored.token_id, scored.text, scored.logprob) == (token, "a", -1.5)
        assert [one.logprob for one in scored.top] == [-2.0 - i for i in range(NUM_TOP)]


@pytest.mark.parametrize(("num_tokens", "num_asides"), [(2, 0), (32, 1)])
async def test_a_long_whole_answer_is_put_together_off_the_event_loop(
    vocabulary: Vocabulary, num_tokens: int, num_asides: int
) -> None:
    aside = Aside()
    generation = _generation(vocabulary, aside, NUM_TOP)
    [token] = vocabulary.encode("a", add_special_tokens=False)
    for _ in range(num_tokens - 1):
        generation.accept(Emitted(1, 0, token, SCORES), now=0.0)
    for index in (0, 1):
        generation.accept(Emitted(1, index, token, SCORES, ending=ENDING), now=0.0)
    answer = await whole_answer(ENTRY, generation)
    assert [len(one.logprobs) for one in answer.sequences] == [num_tokens, 1]
    assert aside.num_calls == num_asides
