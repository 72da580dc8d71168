"""A classifier over a scripted lane: labels of logits, admission and what becomes of leavers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from enginehouse_server.errors import (
    DeadlineError,
    DeviceError,
    InvalidRequestError,
    OverloadedError,
)
from enginehouse_server.scheduler import (
    EncoderBatcher,
    EncoderScheduler,
    LatencyModel,
    Policy,
    ShapeGrid,
)
from enginehouse_server.scheduler.encoder import Deliver
from enginehouse_server.tasks import Classifier, ClassifyReply, ClassifyRequest
from enginehouse_server.tasks.classify import ClassifierTraits
from enginehouse_server.telemetry import Metrics
from enginehouse_server.text import TextInput
from tests.fixtures.encoder import ScriptedLane
from tests.fixtures.tokenizer import GatedTokenizer

WORDS = {"[UNK]": 0, "one": 1, "two": 2, "three": 3, "bad": 4}
GRID = ShapeGrid([(4, (1, 2)), (8, (1, 2))])
MAX_QUEUE = 4


class Rig:
    """A classifier; its logits are the first token's id and the number of tokens."""

    def __init__(self, tokenizer: GatedTokenizer) -> None:
        self.tokenizer, self.lane = tokenizer, ScriptedLane()
        self.lane.poison = WORDS["bad"]
        traits = ClassifierTraits(("first", "length"), "none", False, 8, 8, MAX_QUEUE)
        self.classifier = Classifier(
            traits, tokenizer, self._scheduler, Metrics().of_classifier("topics", 1)
        )

    def _scheduler(self, deliver: Deliver) -> EncoderScheduler:
        latency = LatencyModel(GRID, dict.fromkeys(GRID.shapes, 1e-3))
        policy = Policy(max_queue=MAX_QUEUE, max_queue_s=1e9, window=0.5)
        batcher = EncoderBatcher(GRID, latency, policy)
        return EncoderScheduler(batcher, [self.lane], deliver, lambda *_: None)

    def ask(self, *texts: str, deadline: float = float("inf")) -> "asyncio.Task[ClassifyReply]":
        inputs = [TextInput(text) for text in texts]
        request = ClassifyRequest(inputs, monotonic(), deadline)
        return asyncio.create_task(self.classifier.classify(request))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tokenizers.Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@asynccontextmanager
async def running(file: Path) -> AsyncIterator[Rig]:
    rig = Rig(GatedTokenizer(file))
    try:
        yield rig
    finally:
        rig.tokenizer.gate.set()
        rig.lane.gate.set()
        await rig.classifier.close(10)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - what threads do
            await asyncio.sleep(0.001)


async def test_each_input_gets_its_own_labels_best_first(file: Path) -> None:
    async with running(file) as rig:
        first, second = await rig.ask("three", "one two")
    assert [(x.label, x.score) for x in first.labels] == [(0, 3.0), (1, 1.0)]
    assert [(x.label, x.score) for x in second.labels] == [(1, 2.0), (0, 1.0)]
    assert (first.num_tokens, second.num_tokens) == (1, 2)


async def test_what_waits_for_its_tokens_counts_as_waiting(file: Path) -> None:
    async with running(file) as rig:
        rig.tokenizer.gate.clear()
        asked = [rig.ask("one"), rig.ask("two", "three", "one")]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match=r"4 inputs wait .* limit of 4.*--max-queue"):
            await rig.ask("two")
        rig.tokenizer.gate.set()
        assert [len(found) for found in await asyncio.gather(*asked)] == [1, 3]
        assert await rig.ask("two")


async def test_what_waits_for_its_tokens_and_for_the_engine_counts_together(file: Path) -> None:
    async with running(file) as rig:
        rig.lane.gate.clear()
        asked = [rig.ask("one")]
        await until(lambda: len(rig.lane.batches) == 1)
        asked.append(rig.ask("two", "two"))
        await until(lambda: rig.classifier._scheduler.num_waiting == 2)
        rig.tokenizer.gate.clear()
        asked.append(rig.ask("three", "three"))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await rig.ask("one")
        rig.tokenizer.gate.set()
        rig.lane.gate.set()
        assert [len(found) for found in await asyncio.gather(*asked)] == [1, 2, 2]


async def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits(file: Path) -> None:
    async with running(file) as rig:
        assert len(await rig.ask(*["one"] * (MAX_QUEUE + 2))) == MAX_QUEUE + 2


async def test_who_left_before_being_tokenized_costs_no_tokens(file: Path) -> None:
    async with running(file) as rig:
        rig.tokenizer.gate.clear()
        staying, leaving = rig.ask("one"), rig.ask("two")
        await asyncio.sleep(0)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        rig.tokenizer.gate.set()
        await staying
        await rig.ask("three")
        assert rig.tokenizer.texts == ["one", "three"]


async def test_a_deadline_that_passes_before_the_tokens_is_told(file: Path) -> None:
    async with running(file) as rig:
        rig.tokenizer.gate.clear()
        first, late = rig.ask("one"), rig.ask("two", deadline=monotonic() + 0.02)
        await asyncio.sleep(0.05)
        rig.tokenizer.gate.set()
        assert await first
        with pytest.raises(DeadlineError, match="waited for its tokens"):
            await late
        assert rig.tokenizer.texts == ["one"]


async def test_who_left_while_waiting_for_the_engine_is_not_computed(file: Path) -> None:
    async with running(file) as rig:
        rig.lane.gate.clear()
        staying = rig.ask("one")
        await until(lambda: len(rig.lane.batches) == 1)
        leaving = rig.ask("two")
        await until(lambda: rig.classifier._scheduler.num_waiting == 1)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        rig.lane.gate.set()
        assert await staying
        assert await rig.ask("three")
        assert rig.lane.batches == [[WORDS["one"]], [WORDS["three"]]]


async def test_a_failure_of_the_engine_is_the_requests_own(file: Path) -> None:
    async with running(file) as rig:
        with pytest.raises(DeviceError):
            await rig.ask("bad")
        assert await rig.ask("one")


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        ((), "inputs is empty"),
        (("one",) * 9, "has 9 texts"),
        (("one", ""), r"inputs\[1\]\.text is empty"),
        (("one", " "), r"inputs\[1\]\.text has no tokens"),
        (("one " * 9,), r"has 9 tokens; the model takes at most 8"),
    ],
)
async def test_inputs_that_cannot_be_classified_are_named(
    file: Path, texts: tuple[str, ...], fault: str
) -> None:
    async with running(file) as rig:
        with pytest.raises(InvalidRequestError, match=fault):
            await rig.ask(*texts)
