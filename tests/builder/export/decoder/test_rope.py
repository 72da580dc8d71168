"""Rope that changes with a text's length: held at that of the engine's longest sequence."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from enginehouse_builder.errors import SpecError
from enginehouse_builder.export.rope import hold_rope
from enginehouse_server.engine.openvino import OpenVinoDecoder
from tests.fixtures.decoder_exports import DecoderExport, export_of
from tests.fixtures.decoders import ORIGINAL_LENGTH, SWITCHING_DECODERS, make_decoder
from tests.fixtures.driving import answer_greedily

NUM_TOKENS = 12
MAX_TOKENS = 96


_FAMILIES = [
    pytest.param(name, marks=[pytest.mark.wide] * (name == "gemma3_longrope"))
    for name in SWITCHING_DECODERS
]


@pytest.fixture(scope="module", params=_FAMILIES)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_decoder(request.param, tmp_path_factory.mktemp(request.param))


def _load(original: Path) -> transformers.PreTrainedModel:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        original, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()  # type: ignore[no-any-return]


def _generated(model: transformers.PreTrainedModel, prompt: Sequence[int]) -> list[int]:
    """What transformers itself goes on with, by its own caching."""
    ids = torch.tensor([list(prompt)])
    found = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        eos_token_id=None,
    )
    return found[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def _answered(made: DecoderExport, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """What the engine goes on with, the prompts in pieces and beside each other."""
    with OpenVinoDecoder(made.spec()) as engine:
        return [a.tokens for a in answer_greedily(engine, prompts, NUM_TOKENS, chunk=7)]


def _prompts(made: DecoderExport, *lengths: int) -> list[list[int]]:
    draw = np.random.default_rng(1)
    return [draw.integers(0, made.exported.generate.vocab_size, n).tolist() for n in lengths]


def test_unasked_it_stays_below_the_length_that_changes_it(original: Path, tmp_path: Path) -> None:
    made = export_of(original, tmp_path)
    assert made.exported.max_tokens == ORIGINAL_LENGTH
    assert made.exported.rope_lengths == (ORIGINAL_LENGTH,)
    assert made.exported.held_beyond == 0
    prompts = _prompts(made, 3, ORIGINAL_LENGTH - NUM_TOKENS, 9)
    model = _load(original)
    assert _answered(made, prompts) == [_generated(model, prompt) for prompt in prompts]


def test_beyond_it_texts_have_the_rope_of_long_ones(original: Path, tmp_path: Path) -> None:
    made = export_of(original, tmp_path, max_tokens=MAX_TOKENS)
    assert made.exported.max_tokens == MAX_TOKENS
    assert made.exported.held_beyond == ORIGINAL_LENGTH
    prompts = _prompts(made, 3, 60, ORIGINAL_LENGTH + 1, 11)
    untouched, held = _load(original), _load(original)
    hold_rope(held, MAX_TOKENS)
    answers = _answered(made, prompts)
    assert answers == [_generated(held, prompt) for prompt in prompts]
    if "longrope" in str(original):  # the same for every long text
        assert answers[1:3] == [_generated(untouched, prompt) for prompt in prompts[1:3]]
    with torch.no_grad():
        short = torch.tensor([prompts[-1]])
        difference = held(short).logits - untouched(short).logits
    assert difference.abs().max() > 0.01  # otherwise there was nothing to hold


def test_dynamic_rope_of_the_longest_text_is_transformers_own(tmp_path: Path) -> None:
    original = make_decoder("llama_dynamic", tmp_path)
    held, untouched = _load(original), _load(original)
    hold_rope(held, MAX_TOKENS)
    ids = torch.arange(MAX_TOKENS)[None]
    with torch.no_grad():
        assert torch.equal(held(ids).logits, untouched(ids).logits)


def test_more_than_the_scaling_reaches_is_refused(original: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--max-tokens 97 is more than the 96"):
        export_of(original, tmp_path, max_tokens=MAX_TOKENS + 1)
