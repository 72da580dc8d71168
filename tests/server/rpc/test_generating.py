"""What is generated, written to a reader that a test paces."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar, cast

import pytest

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_server.errors import OverloadedError
from enginehouse_server.repository import Entry
from enginehouse_server.rpc.call import Context
from enginehouse_server.rpc.generating import write_pieces
from enginehouse_server.scheduler import Emitted, Ending
from enginehouse_server.tasks import GenerateRequest, Generation, Prompt, PromptTokens
from enginehouse_server.tasks.sequence import SequenceAssembly
from enginehouse_server.telemetry import Metrics
from enginehouse_server.text import Vocabulary
from tests.fixtures.vocabularies import save_tokenizer

_T = TypeVar("_T")
ENTRY = cast(Entry, SimpleNamespace(model="m", version=1))
ENDING = Ending("length", None, 0, 5, 0, started_at=0.0, first_token_at=0.0, ended_at=0.0)


class Reader:
    """The other end of a stream: takes a message when it is told to."""

    def __init__(self) -> None:
        self.reads = asyncio.Semaphore(0)
        self.texts: list[list[str]] = []

    async def write(self, message: pb.GenerateStreamResponse) -> None:
        self.texts.append([sequence.text for sequence in message.sequences])
        await self.reads.acquire()


async def _at_once(function: Callable[[], _T]) -> _T:
    return function()


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    return Vocabulary(save_tokenizer("byte_level", tmp_path))


def _generation(vocabulary: Vocabulary) -> Generation:
    request = GenerateRequest(Prompt(text="The"), arrived_at=0.0)
    prompt = vocabulary.encode("The", add_special_tokens=False)
    sequences = [SequenceAssembly(i, request, prompt, vocabulary, frozenset()) for i in range(2)]
    return Generation(
        PromptTokens(prompt, "The"),
        vocabulary,
        sequences,
        Metrics().of_decoder("m", 1),
        _at_once,
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
