"""Whole requests through both schedulers to plans on the double."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from random import Random

import numpy as np
import pytest

from enginehouse_server.engine.base import EncoderSpec
from enginehouse_server.engine.create import create_decoder, create_encoder
from enginehouse_server.engine.decoder import DecoderEngine, DecoderSpec
from enginehouse_server.errors import DeviceError
from enginehouse_server.sampling import SamplingSettings
from enginehouse_server.scheduler import (
    Completion,
    Emitted,
    EncoderBatcher,
    EncoderScheduler,
    EncoderWork,
    Ending,
    GeneratePolicy,
    GenerateScheduler,
    GenerateWork,
    LatencyModel,
    Policy,
    ShapeGrid,
    StepPace,
)
from tests.conftest import Decoder
from tests.fixtures.decoder_exports import DecoderExport
from tests.fixtures.sums import Row, expected, random_rows, write_sums
from tests.fixtures.trt_double import DoubleModule
from tests.fixtures.trt_double.plans import decoder_plan, encoder_plan

VOCAB = 800
SHARED = np.random.default_rng(9).integers(0, VOCAB, 40).tolist()
PROMPTS = [
    np.random.default_rng(i).integers(0, VOCAB, n).tolist()
    for i, n in enumerate((60, 31, 70, 33, 5))
] + [[9], [*SHARED, 1, 2], [*SHARED, 3], SHARED + [4] * 9]


class _Inbox:
    """What sequences gave, and how they ended."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.endings: dict[int, Ending] = {}
        self._changed = threading.Condition()

    def deliver(self, emitted: Sequence[Emitted]) -> None:
        with self._changed:
            for one in emitted:
                if one.token is not None:
                    self.tokens.setdefault(one.request_id, []).append(one.token)
                if one.ending is not None:
                    self.endings[one.request_id] = one.ending
            self._changed.notify_all()

    def wait_for_end(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.endings) >= count, 30)

    def wait_for_tokens(self, request_id: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: request_id in self.tokens, 30)


@pytest.fixture(scope="module")
def made(decoder: Decoder) -> DecoderExport:
    return decoder("llama")


@pytest.fixture(scope="module")
def spec(made: DecoderExport, tmp_path_factory: pytest.TempPathFactory) -> DecoderSpec:
    return decoder_plan(made.spec(max_sequences=4), tmp_path_factory.mktemp("plan"))


@pytest.fixture
def engine(double: DoubleModule, spec: DecoderSpec) -> Iterator[DecoderEngine]:
    with closing(create_decoder("tensorrt", spec)) as opened:
        yield opened


@pytest.fixture
def inbox() -> _Inbox:
    return _Inbox()


@pytest.fixture
def scheduler(engine: DecoderEngine, inbox: _Inbox) -> Iterator[GenerateScheduler]:
    running = GenerateScheduler(
        engine, None, GeneratePolicy(), StepPace({}, None), inbox.deliver, lambda _: None
    )
    yield running
    running.close(10)


def _work(number: int, max_new_tokens: int = 8) -> GenerateWork:
    greedy = SamplingSettings(temperature=0)
    return GenerateWork(number, 0, PROMPTS[number], greedy, max_new_tokens=max_new_tokens)


def _check(made: DecoderExport, number: int, tokens: Sequence[int]) -> None:
    """Each token is the one that the original finds the likeliest."""
    prompt = PROMPTS[number]
    logits = made.original_logits([*prompt, *tokens[:-1]])[len(prompt) - 1 :]
    assert list(tokens) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_nine_sequences_join_and_leave_at_random_and_each_says_what_the_original_says(
    scheduler: GenerateScheduler,
    inbox: _Inbox,
    made: DecoderExport,
    double: DoubleModule,
    seed: int,
) -> None:
    draw = Random(seed)
    order = list(range(9))
    draw.shuffle(order)
    for number in order:
        scheduler.submit([_work(number, draw.randint(2, 16))])
        if draw.random() < 0.4:
            inbox.wait_for_tokens(number)
    inbox.wait_for_end(9)
    for number in order:
        assert inbox.endings[number].error is None
        _check(made, number, inbox.tokens[number])
    assert max(ending.num_cached_tokens for ending in inbox.endings.values()) == 32
    assert 1 <= len(double.device.graphs) <= 4


def test_who_cancels_leaves_the_others_alone(
    scheduler: GenerateScheduler, inbox: _Inbox, made: DecoderExport
) -> None:
    for number in (0, 1, 2):
        scheduler.submit([_work(number, 20)])
    inbox.wait_for_tokens(1)
    scheduler.cancel(1)
    scheduler.submit([_work(3, 20)])
    inbox.wait_for_end(4)
    assert inbox.endings[1].reason == "cancelled"
    for number in (0, 2, 3):
        _check(made, number, inbox.tokens[number])


def test_a_step_that_the_runtime_refuses_ends_what_runs_and_nothing_after(
    scheduler: GenerateScheduler, inbox: _Inbox, made: DecoderExport, double: DoubleModule
) -> None:
    double.engines[0].num_refused_runs = 1
    scheduler.submit([_work(0)])
    inbox.wait_for_end(1)
    assert isinstance(inbox.endings[0].error, DeviceError)
    assert "no kernel" in str(inbox.endings[0].error)
    scheduler.submit([_work(1)])
    inbox.wait_for_end(2)
    _check(made, 1, inbox.tokens[1])


class _Answers:
    """What inputs of an encoder came to."""

    def __init__(self, count: int) -> None:
        self.completions: dict[int, Completion] = {}
        self.is_done = threading.Event()
        self._count, self._lock = count, threading.Lock()

    def deliver(self, completions: Sequence[Completion]) -> None:
        with self._lock:
            self.completions |= {c.request_id: c for c in completions}
            if len(self.completions) == self._count:
                self.is_done.set()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    folder = tmp_path_factory.mktemp("encoder")
    return encoder_plan(write_sums(folder), folder / "model.plan", ((1, 1), (4, 32)))


def test_two_lanes_answer_a_crowd_and_keep_the_device_fed(
    double: DoubleModule, encoder: EncoderSpec
) -> None:
    grid = ShapeGrid([(16, [1, 2, 4]), (32, [1, 2, 4])])
    batcher = EncoderBatcher(grid, LatencyModel(grid, {}), Policy(256, 30.0, 0.5))
    rows = random_rows(60, seed=4, longest=32)
    answers = _Answers(len(rows))
    with closing(create_encoder("tensorrt", encoder)) as engine:
        device = double.device
        device.gate.clear()  # what is enqueued before anything ends is what overlaps
        scheduler = EncoderScheduler(batcher, engine.lanes, answers.deliver, lambda *_: None)
        for number, row in enumerate(rows):
            scheduler.submit([EncoderWork(number, 0, row.ids)])
        while len({stream for what, stream in list(device.log) if what == "wait"}) < 2:
            threading.Event().wait(0.005)
        copies = [stream for what, stream in device.log if what == "copy in"]
        assert set(copies) == {0, 1}, "the second batch is copied before the first has ended"
        device.gate.set()
        assert answers.is_done.wait(30)
        scheduler.close(10)
    for number, row in enumerate(rows):
        logits = answers.completions[number].logits
        assert logits is not None
        np.testing.assert_allclose(logits, expected(row), atol=1e-3)


def test_a_batch_that_fails_fails_alone(double: DoubleModule, encoder: EncoderSpec) -> None:
    grid = ShapeGrid([(16, [1])])
    batcher = EncoderBatcher(grid, LatencyModel(grid, {}), Policy(256, 30.0, 0.5))
    answers = _Answers(2)
    with closing(create_encoder("tensorrt", encoder)) as engine:
        double.engines[0].num_refused_runs = 1
        scheduler = EncoderScheduler(batcher, engine.lanes[:1], answers.deliver, lambda *_: None)
        row = Row([1, 2, 3])
        for number in range(2):
            scheduler.submit([EncoderWork(number, 0, row.ids)])
        assert answers.is_done.wait(30)
        scheduler.close(10)
    assert isinstance(answers.completions[0].error, DeviceError)
    logits = answers.completions[1].logits
    assert logits is not None
    np.testing.assert_allclose(logits, expected(row), atol=1e-3)
