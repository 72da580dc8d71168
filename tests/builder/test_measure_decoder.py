from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse_builder.measure_decoder import (
    Contexts,
    StepBudget,
    contexts_of,
    measure_decoder,
)
from enginehouse_server.engine.decoder import DecoderLimits, DecoderSpec, LayerGeometry, StepItem
from tests.builder.certify.scripted import LIMITS, ScriptedDecoder

SPEC = DecoderSpec(
    model=Path("model.onnx"),
    precision="fp32",
    cache_precision="fp32",
    layers=(LayerGeometry(4, 2, 8, 8, 0),) * 2,
    vocab_size=50,
    max_tokens=4096,
    max_step_tokens=512,
    max_sequences=12,
    cache_bytes=0,
    num_threads=1,
)
ROOMY = replace(
    LIMITS, block_size=32, num_blocks=800, max_tokens=4096, max_step_tokens=512, max_sequences=12
)
CONTEXTS = Contexts((64, 1024), 800 * 32)


class _Timed(ScriptedDecoder):
    """Takes a second a token, on a clock of its own."""

    def __init__(self, limits: DecoderLimits, seconds: float = 1.0) -> None:
        super().__init__(limits)
        self.now = 0.0
        self._seconds = seconds

    def start(self, items: Sequence[StepItem]) -> None:
        self.steps.append([*items])
        self.now += self._seconds * sum(len(item.tokens) for item in items)

    def clock(self) -> float:
        return self.now


def test_prompts_and_sequences_of_all_sizes_are_timed_after_short_and_long_contexts() -> None:
    engine = _Timed(ROOMY, 1e-4)
    found = measure_decoder(engine, CONTEXTS, clock=engine.clock)
    prefill = {(t.num_tokens, t.num_cached) for t in found if t.kind == "prefill"}
    decode = {(t.num_sequences, t.num_cached) for t in found if t.kind == "decode"}
    assert prefill == {(n, c) for n in (16, 32, 64, 128, 256) for c in (0, 1024)}
    assert decode == {(n, c) for n in (1, 2, 4, 8, 12) for c in (64, 1024)}
    for time in found:
        assert time.median_ms == pytest.approx(time.num_tokens * 0.1)
        assert time.num_tokens == (time.num_sequences if time.kind == "decode" else time.num_tokens)
    assert [time.kind for time in found] == sorted((t.kind for t in found), reverse=True)


def test_sequences_of_a_step_have_blocks_of_their_own() -> None:
    engine = _Timed(ROOMY, 1e-4)
    measure_decoder(engine, CONTEXTS, clock=engine.clock)
    for step in engine.steps:
        blocks = [block for item in step for block in item.blocks]
        assert len(set(blocks)) == len(blocks)
        assert max(blocks) < ROOMY.num_blocks
        for item in step:
            held = len(item.blocks) * ROOMY.block_size
            assert held - ROOMY.block_size < item.num_cached + len(item.tokens) <= held


def test_a_slow_engine_is_timed_in_part_and_within_the_time() -> None:
    engine = _Timed(ROOMY, 0.1)
    found = measure_decoder(engine, CONTEXTS, StepBudget(15, 45, 8), engine.clock)
    assert {time.kind for time in found} == {"prefill", "decode"}
    assert len(found) < 20
    assert engine.now < 60


def test_what_the_limits_forbid_is_not_tried() -> None:
    small = replace(ROOMY, num_blocks=6, max_step_tokens=20, max_sequences=3, max_tokens=96)
    engine = _Timed(small, 1e-4)
    found = measure_decoder(engine, Contexts((48,), 192), clock=engine.clock)
    assert {t.num_tokens for t in found if t.kind == "prefill"} == {16}
    assert {t.num_sequences for t in found if t.kind == "decode"} == {1, 2, 3}


def test_contexts_keep_to_the_limits_and_to_a_share_of_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = "enginehouse_builder.measure_decoder.available_bytes"
    monkeypatch.setattr(where, lambda: None)
    assert contexts_of(SPEC).lengths == (64, 1024)
    assert contexts_of(SPEC).num_tokens >= 12 * 1025
    assert contexts_of(replace(SPEC, max_tokens=96)).lengths == (48,)
    monkeypatch.setattr(where, lambda: 4 * 1000 * 264)  # room for about 1000 tokens
    assert 320 <= contexts_of(SPEC).num_tokens <= 1000
