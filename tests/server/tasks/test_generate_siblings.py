"""Requests over a scripted engine: what they leave behind."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse_server.engine.base import Logits
from enginehouse_server.errors import DeviceError
from enginehouse_server.scheduler import GeneratePolicy, GenerateScheduler, StepPace
from enginehouse_server.scheduler.generate_work import DeliverTokens
from enginehouse_server.tasks import (
    GenerateRequest,
    Generator,
    GeneratorTraits,
    Prompt,
    SamplingDefaults,
    SamplingWish,
    Stopping,
)
from enginehouse_server.tasks.prompts import PromptReader
from enginehouse_server.telemetry import Metrics
from enginehouse_server.text import Vocabulary
from tests.fixtures.decoder import PAGED, ScriptedDecoder
from tests.fixtures.vocabularies import save_tokenizer

VOCAB = 300
LIMITS = replace(PAGED, max_tokens=4000, num_blocks=4000)
REQUEST = GenerateRequest(
    Prompt(text="The"),
    sampling=SamplingWish(temperature=0.0, num_sequences=2),
    stopping=Stopping(max_new_tokens=3000, ignore_eos=True),
    arrived_at=0.0,
)


class HalfFailingDecoder(ScriptedDecoder):
    """Gives no numbers for the last sequence of a step once, and then steps slowly."""

    has_failed = False

    def wait(self) -> Logits:
        logits = super().wait()
        if not self.has_failed and len(logits) > 1:
            logits[-1] = float("nan")
            self.has_failed = True
        time.sleep(0.002)
        return logits


async def test_when_one_sequence_fails_the_others_do_not_run_on(tmp_path: Path) -> None:
    vocabulary = Vocabulary(save_tokenizer("byte_level", tmp_path))
    engine = HalfFailingDecoder(LIMITS, VOCAB)
    traits = GeneratorTraits(
        vocab_size=VOCAB,
        eos_ids=frozenset({0}),
        accepts_chat=False,
        max_tokens=LIMITS.max_tokens,
        max_sequences=4,
        max_characters=1000,
        max_running=8,
        max_waiting=8,
        max_step_tokens=LIMITS.max_step_tokens,
        cache_tokens=LIMITS.num_blocks * LIMITS.block_size,
        defaults=SamplingDefaults(),
    )

    def create_scheduler(deliver: DeliverTokens) -> GenerateScheduler:
        pace = StepPace({}, None)
        return GenerateScheduler(engine, None, GeneratePolicy(), pace, deliver, lambda _: None)

    telemetry = Metrics().of_decoder("m", 1)
    generator = Generator(
        traits, PromptReader(vocabulary, None, traits), None, create_scheduler, telemetry
    )
    with pytest.raises(DeviceError, match="not a number"):
        async with generator.generate(REQUEST) as generation:
            await generation.whole()
    await generator.close(10)
    assert len(engine.steps) < 1000, "the other one was computed to its end"
