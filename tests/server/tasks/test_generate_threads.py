"""On which thread what takes long of a request happens: neither the loop's nor the scheduler's."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from llguidance import LLMatcher
from numpy.typing import NDArray

from enginehouse_server.engine.decoder import DecoderLimits
from enginehouse_server.sampling import StructureCompiler, structure
from enginehouse_server.scheduler import GeneratePolicy, GenerateScheduler, StepPace
from enginehouse_server.scheduler.generate_work import DeliverTokens
from enginehouse_server.tasks import (
    GenerateRequest,
    Generator,
    GeneratorTraits,
    Output,
    Prompt,
    PromptReader,
    SamplingDefaults,
    SamplingWish,
    Stopping,
    StructureSpec,
)
from enginehouse_server.telemetry import Metrics
from enginehouse_server.text import Vocabulary
from tests.fixtures.bytes_tokenizer import EOS, write_tokenizer
from tests.fixtures.decoder import PAGED, ScriptedDecoder

VOCAB = 320
LIMITS: DecoderLimits = PAGED
REQUEST = GenerateRequest(
    Prompt(text="The quick brown fox"),
    sampling=SamplingWish(temperature=0.0),
    stopping=Stopping(max_new_tokens=4),
    arrived_at=0.0,
)


class Rig(NamedTuple):
    generator: Generator
    vocabulary: Vocabulary


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Rig]:
    file = folder / "tokenizer.json"
    write_tokenizer(file)
    vocabulary, compiler = Vocabulary(file), StructureCompiler(file, VOCAB, [EOS])
    traits = GeneratorTraits(
        vocab_size=VOCAB,
        eos_ids=frozenset({EOS}),
        accepts_chat=False,
        max_tokens=LIMITS.max_tokens,
        max_sequences=4,
        max_characters=1000,
        max_waiting=8,
        max_running=LIMITS.max_sequences,
        max_step_tokens=LIMITS.max_step_tokens,
        cache_tokens=LIMITS.num_blocks * LIMITS.block_size,
        defaults=SamplingDefaults(),
    )

    def scheduler(deliver: DeliverTokens) -> GenerateScheduler:
        engine = ScriptedDecoder(LIMITS, VOCAB)
        pace = StepPace({}, None)
        return GenerateScheduler(engine, compiler, GeneratePolicy(), pace, deliver, lambda _: None)

    reader = PromptReader(vocabulary, None, traits)
    generator = Generator(traits, reader, compiler, scheduler, Metrics().of_decoder("m", 1))
    try:
        yield Rig(generator, vocabulary)
    finally:
        await generator.close(5)


async def test_the_first_mask_of_a_structure_is_made_before_admission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    fill: Callable[[LLMatcher, NDArray[np.int32]], None] = structure._fill

    def recorded(grammar: LLMatcher, bits: NDArray[np.int32]) -> None:
        threads.append(threading.current_thread().name)
        fill(grammar, bits)

    monkeypatch.setattr(structure, "_fill", recorded)
    spec = StructureSpec("choices", '["ab", "cd"]')
    sampling = SamplingWish(temperature=0.0, num_sequences=2)
    async with serving(tmp_path) as rig:
        request = replace(REQUEST, structure=spec, sampling=sampling)
        async with rig.generator.generate(request) as generation:
            news = await generation.whole()
    assert {piece.text for piece in news.pieces} <= {"ab", "cd"}
    assert threads[0].startswith("tokenizer")
    num_later = sum(piece.end is not None and piece.end.num_generated for piece in news.pieces)
    assert threads[1:].count("decoder") == len(threads) - 1 <= num_later  # none of a first token


async def test_log_probabilities_of_a_prompt_are_put_together_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as rig:
        threads: list[str] = []
        text_of = rig.vocabulary.token_text

        def recorded(token: int) -> str:
            threads.append(threading.current_thread().name)
            return text_of(token)

        monkeypatch.setattr(rig.vocabulary, "token_text", recorded)
        request = replace(REQUEST, output=Output(prompt_logprobs=2))
        async with rig.generator.generate(request) as generation:
            first = await generation.next()
        assert first is not None
        prompt = (await rig.generator.tokenize(REQUEST.prompt)).ids
        async with rig.generator.generate(request) as generation:
            whole = await generation.whole()
    for scored in (first.prompt_logprobs, whole.prompt_logprobs):
        assert [one.token for one in scored] == [*prompt[1:]]
    assert len(threads) == 2 * 3 * (len(prompt) - 1)
    assert all(name.startswith("tokenizer") for name in threads)


async def test_what_is_left_after_closing_is_still_done(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        request = replace(REQUEST, output=Output(prompt_logprobs=0))
        async with rig.generator.generate(request) as generation:
            await rig.generator.close(5)
            assert (await generation.whole()).prompt_logprobs
