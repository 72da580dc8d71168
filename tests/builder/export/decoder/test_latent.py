"""Latent attention: keys and values made of narrower states, keys wider than values."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export.decoder.expansion import is_made_token_by_token, moved_on
from enginehouse_builder.export.decoder.observe import observe
from enginehouse_server.engine.openvino import OpenVinoDecoder
from tests.conftest import Decoder
from tests.fixtures.decoder_exports import export_of
from tests.fixtures.decoders import LATENT_DECODERS, SPARSE_DECODERS, make_decoder
from tests.fixtures.driving import answer_greedily

from .test_export import NUM_TOKENS, assert_says_what_the_original_says, prompts_for

CORE = ("deepseek_v2", "deepseek_v3")
FAMILIES = [
    pytest.param(name, marks=[pytest.mark.wide] * (name not in CORE)) for name in LATENT_DECODERS
]


@pytest.mark.parametrize("family", FAMILIES)
def test_latent_attention_says_what_the_original_says(family: str, decoder: Decoder) -> None:
    made = decoder(family)
    for layer in made.exported.generate.layers:
        assert layer.key_dim > layer.value_dim
        assert layer.num_kv_heads == layer.num_heads
    assert_says_what_the_original_says(made)


@pytest.mark.parametrize(
    "family", ["deepseek_v3", pytest.param("deepseek_v3_wide", marks=pytest.mark.wide)]
)
def test_a_cache_in_u8_is_near_for_every_sequence_of_a_step(family: str, decoder: Decoder) -> None:
    made = decoder(family)
    with OpenVinoDecoder(made.spec(cache_precision="u8")) as engine:
        answers = answer_greedily(engine, prompts_for(made), NUM_TOKENS, chunk=7)
    for answer in answers:
        whole = [*answer.prompt, *answer.tokens]
        original = made.original_logits(whole[:-1])[len(answer.prompt) - 1 :]
        error = np.abs(np.array(answer.rows) - original).max()
        assert 0 < error < 0.05 * np.abs(original).max()


@pytest.mark.wide
@pytest.mark.parametrize("family", SPARSE_DECODERS)
def test_what_caches_more_is_refused(family: str, tmp_path: Path) -> None:
    original = make_decoder(family, tmp_path / "original")
    with pytest.raises(UnsupportedModelError, match="it caches more than keys and values"):
        export_of(original, tmp_path / "export")


def _with_expansion(
    folder: Path, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> transformers.PreTrainedModel:
    """A DeepSeek-V3 whose second layer does something to the keys and values that it made."""
    original = make_decoder("deepseek_v3", folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(original, attn_implementation="eager")
    attention = cast(nn.Module, model.model.layers[1].self_attn)
    expand = cast(Callable[..., tuple[Tensor, Tensor]], attention.expand_kv)
    attention.expand_kv = lambda *states: change(*expand(*states))  # type: ignore[assignment]
    return cast(transformers.PreTrainedModel, model.eval())


def _as_it_was(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return key * 2, value


def _of_the_one_before(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return key + torch.nn.functional.pad(key[:, :, :-1], (0, 0, 1, 0)), value


def _of_the_one_after(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return key, value.cumsum(2).flip(2)


def _of_its_place(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return key * (1 + torch.arange(key.shape[2]))[:, None], value


def test_what_is_made_of_each_token_alone_is_taken(tmp_path: Path) -> None:
    assert len(observe(_with_expansion(tmp_path, _as_it_was)).layers) == 2


@pytest.mark.parametrize("change", [_of_the_one_before, _of_the_one_after, _of_its_place])
def test_what_is_made_of_others_or_of_its_place_is_refused(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=r"layer 1 .* not of that token's alone"):
        observe(_with_expansion(tmp_path, change))


def test_states_move_on_by_a_token() -> None:
    states = torch.randn(2, 3, 4, 5)
    moved = moved_on(states)
    assert torch.equal(moved[:, :, :-1], states[:, :, 1:])
    assert not torch.isin(moved[:, :, -1], states).any()
    assert is_made_token_by_token(states @ torch.ones(5, 2), moved @ torch.ones(5, 2))
