"""Whole requests to engines that keep logits on their device: what comes back of them, and tokens.

The engines are both for GPUs, on doubles of TensorRT and of a CUDA device.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.create import create_decoder
from enginehouse_server.engine.decoder import DecoderEngine, StepItem
from enginehouse_server.engine.graph import NUM_BEST
from enginehouse_server.engine.onnxruntime import OnnxRuntimeDecoder
from enginehouse_server.engine.reduction import ReducedLayout
from enginehouse_server.sampling import SamplingSettings, TokenLogprobs
from enginehouse_server.scheduler import (
    Emitted,
    GeneratePolicy,
    GenerateScheduler,
    GenerateWork,
    StepPace,
)
from tests.conftest import Decoder
from tests.fixtures.cuda_double import CudaDouble
from tests.fixtures.decoder_exports import DecoderExport
from tests.fixtures.trt_double import DoubleModule, install
from tests.fixtures.trt_double.plans import decoder_plan
from tests.server.engine.test_onnxruntime_gpu import place_on

VOCAB = 800
NUM_TOKENS = 6
GREEDY = SamplingSettings(temperature=0)
REDUCED = [ReducedLayout(n, NUM_BEST).num_bytes for n in range(5)]  # bytes of so many rows
ROW = 4 * VOCAB


@dataclass
class Inbox:
    """What sequences gave."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    scores: dict[int, Sequence[TokenLogprobs]] = field(default_factory=dict)
    num_ended: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def deliver(self, emitted: Sequence[Emitted]) -> None:
        with self.changed:
            for one in emitted:
                if one.token is not None:
                    self.tokens.setdefault(one.request_id, []).append(one.token)
                if one.logprobs is not None:
                    self.logprobs.setdefault(one.request_id, []).append(one.logprobs)
                if one.prompt_logprobs is not None:
                    self.scores[one.request_id] = one.prompt_logprobs
                if one.ending is not None:
                    assert one.ending.error is None
                    self.num_ended += 1
            self.changed.notify_all()


class Machine:
    """An engine, and the sizes of its copies to the host."""

    def __init__(self, engine: DecoderEngine, copied: list[int]) -> None:
        self.engine, self.copied = engine, copied

    def generate(self, *asked: SamplingSettings, **changes: object) -> Inbox:
        """A sequence for each; all at once."""
        inbox = Inbox()
        scheduler = GenerateScheduler(
            *(self.engine, None, GeneratePolicy(), StepPace({}, None)),
            *(inbox.deliver, lambda _: None),
        )
        works = [
            GenerateWork(0, i, [7 + i, 3, 5, 200 + i], one, NUM_TOKENS)
            for i, one in enumerate(asked)
        ]
        works = [replace(w, request_id=w.index, index=0, **changes) for w in works]  # type: ignore[arg-type]
        self.copied.clear()
        for work in works:
            scheduler.submit([work])
        with inbox.changed:
            assert inbox.changed.wait_for(lambda: inbox.num_ended == len(works), 30)
        scheduler.close(10)
        return inbox


def plan_machine(
    made: DecoderExport, folder: Path, patch: pytest.MonkeyPatch, stack: ExitStack
) -> Machine:
    module: DoubleModule = install(patch)
    engine = create_decoder("tensorrt", decoder_plan(made.spec(max_sequences=4), folder))
    stack.callback(lambda: pytest.fail(str(module.faults)) if module.faults else None)
    return Machine(stack.enter_context(closing(engine)), module.device.copied)


def cuda_machine(
    made: DecoderExport, _folder: Path, _patch: pytest.MonkeyPatch, stack: ExitStack
) -> Machine:
    device = CudaDouble()
    spec = made.spec(attention="slots", max_sequences=4)
    engine = OnnxRuntimeDecoder(spec, place_on(device, has_graphs=True))
    return Machine(stack.enter_context(engine), device.copied)


@pytest.fixture(scope="module")
def made(decoder: Decoder) -> DecoderExport:
    return decoder("llama")


@pytest.fixture(params=[plan_machine, cuda_machine], ids=["tensorrt", "onnxruntime"])
def machine(
    request: pytest.FixtureRequest,
    made: DecoderExport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Machine]:
    with ExitStack() as stack:
        yield request.param(made, tmp_path, monkeypatch, stack)


def check_greedy(made: DecoderExport, prompt: list[int], tokens: list[int]) -> None:
    logits = made.original_logits([*prompt, *tokens[:-1]])[len(prompt) - 1 :]
    assert tokens == logits.argmax(-1).tolist()


def test_a_greedy_request_copies_the_best_logits_alone(
    machine: Machine, made: DecoderExport
) -> None:
    found = machine.generate(GREEDY)
    assert machine.copied == [REDUCED[1]] * NUM_TOKENS
    check_greedy(made, [7, 3, 5, 200], found.tokens[0])


@pytest.mark.parametrize(
    "asked",
    [
        replace(GREEDY, presence_penalty=0.5),
        SamplingSettings(seed=3),
        replace(GREEDY, logit_bias={5: 1.0}),
    ],
    ids=["penalty", "all tokens", "bias"],
)
def test_what_takes_all_logits_copies_all(machine: Machine, asked: SamplingSettings) -> None:
    machine.generate(asked)
    assert machine.copied == [REDUCED[1], ROW] * NUM_TOKENS


def test_in_a_step_of_several_each_gets_what_it_takes(
    machine: Machine, made: DecoderExport
) -> None:
    found = machine.generate(GREEDY, replace(GREEDY, repetition_penalty=1.5), GREEDY, GREEDY)
    assert sum(n // ROW for n in machine.copied if n % ROW == 0) == NUM_TOKENS
    assert set(machine.copied) <= {*REDUCED, ROW}
    for i in (0, 2, 3):
        check_greedy(made, [7 + i, 3, 5, 200 + i], found.tokens[i])


@pytest.mark.parametrize(
    "asked",
    [
        SamplingSettings(top_k=30, seed=5, num_logprobs=4),
        SamplingSettings(top_k=100, top_p=0.7, temperature=0.8, seed=5, num_logprobs=0),
        SamplingSettings(min_p=0.5, temperature=0.9, seed=6),
        replace(GREEDY, num_logprobs=20),
    ],
    ids=["top_k", "top_k and top_p", "min_p", "logprobs"],
)
def test_tokens_and_log_probabilities_are_those_of_all_logits(
    machine: Machine, made: DecoderExport, asked: SamplingSettings
) -> None:
    found = machine.generate(asked)
    assert REDUCED[1] in machine.copied
    whole = Machine(_Whole(machine.engine), machine.copied).generate(asked)
    assert found.tokens == whole.tokens
    assert found.logprobs.keys() == whole.logprobs.keys()
    for ours, theirs in zip(found.logprobs.get(0, ()), whole.logprobs.get(0, ()), strict=True):
        assert [t for t, _ in ours.top] == [t for t, _ in theirs.top]
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)


def test_a_prompt_that_is_scored_gets_all_logits_of_its_tokens_and_then_no_more(
    machine: Machine, made: DecoderExport
) -> None:
    found = machine.generate(GREEDY, num_prompt_logprobs=2)
    assert [n for n in machine.copied if n % ROW == 0] == [4 * ROW]
    assert len(found.scores[0]) == 3
    check_greedy(made, [7, 3, 5, 200], found.tokens[0])


class _Whole:
    """An engine that gives all logits, whatever it could do."""

    backend = runtime_version = device = "whole"

    def __init__(self, engine: DecoderEngine) -> None:
        self._engine, self.limits = engine, replace(engine.limits, num_best=0)

    def start(self, items: Sequence[StepItem]) -> None:
        self._engine.start(items)

    def wait(self) -> Logits:
        return self._engine.wait()

    def copy_block(self, source: int, target: int) -> None:
        self._engine.copy_block(source, target)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        self._engine.clear_blocks(blocks)

    def close(self) -> None:
        raise AssertionError
