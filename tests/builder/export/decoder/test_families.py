"""Attention outside transformers' interface: that a wrong idea of it is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom_alibi
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon_alibi

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export.decoder.families.alibi import slopes_of
from enginehouse_builder.export.decoder.observe import observe
from enginehouse_builder.export.decoder.rehearsal import check_adapted, check_positions
from tests.fixtures.decoders import make_decoder

Load = Callable[[str], PreTrainedModel]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Gives a tiny model of a family, in eager attention."""

    def of_family(family: str) -> PreTrainedModel:
        folder = make_decoder(family, tmp_path / family)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )
        return cast(PreTrainedModel, model.eval())

    return of_family


def modules_of(model: PreTrainedModel, class_name: str) -> list[nn.Module]:
    found = [m for m in model.modules() if type(m).__name__ == class_name]
    assert len(found) == 2
    return found


def test_windows_come_from_the_modules_own_mask(load: Load) -> None:
    model = load("gpt_neo")
    layers = observe(model).layers
    assert [layer.window for layer in layers] == [0, 8]
    wrong = [replace(layer, window=9) if layer.window else layer for layer in layers]
    with pytest.raises(UnsupportedModelError, match=r"off by .* not what it was taken for"):
        check_adapted(model, wrong)


def test_positions_are_counted_as_the_models_own_code_counts_them(load: Load) -> None:
    model = load("roberta")
    check_positions(model)
    (table,) = (m for n, m in model.named_modules() if n.endswith("position_embeddings"))
    cast(nn.Embedding, table).padding_idx = 3  # its code goes by the configuration's
    with pytest.raises(UnsupportedModelError, match=r"counts positions in its own way.* from 4"):
        check_positions(model)


def test_a_mask_with_holes_is_refused(load: Load) -> None:
    model = load("gpt_neo")
    _, local = modules_of(model, "GPTNeoSelfAttention")
    cast(Tensor, local.bias)[0, 0, 40, 36] = False
    with pytest.raises(UnsupportedModelError, match="neither all tokens before it nor the last"):
        observe(model)


def test_attention_that_says_something_else_is_refused(load: Load) -> None:
    # Eager attention of such a model adds its bias twice; an export never loads it so.
    with pytest.raises(UnsupportedModelError, match=r"off by .* after 96 tokens"):
        observe(load("falcon_rw"))


def test_what_inherits_from_a_known_module_is_not_taken_for_it(load: Load) -> None:
    class Own(BloomAttention):
        pass

    model = load("bloom")
    for module in modules_of(model, "BloomAttention"):
        module.__class__ = Own
    with pytest.raises(UnsupportedModelError, match="takes no positions"):
        observe(model)


@pytest.mark.parametrize("family", ["bloom", "falcon"])
def test_the_model_is_left_as_it_was(family: str, load: Load) -> None:
    model = load(family)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False)[0]
        observe(model)
        after = model(input_ids=ids, use_cache=False)[0]
    assert torch.equal(before, after)
    assert model.config._attn_implementation == "eager"
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("heads", [4, 12])  # a power of two, and none
def test_slopes_are_those_of_a_line(heads: int) -> None:
    everything = torch.ones(1, 700, dtype=torch.long)
    bias = bloom_alibi(everything, heads, torch.float32)[:, 0]
    slopes = slopes_of(bias)
    assert slopes.shape == (heads,)
    torch.testing.assert_close(slopes, bias[:, 1], rtol=1e-6, atol=0)


def test_a_bias_that_was_rounded_is_no_line() -> None:
    everything = torch.ones(1, 700, dtype=torch.long)
    with pytest.raises(UnsupportedModelError, match="off a line by"):
        slopes_of(falcon_alibi(everything, 4, torch.float32)[:, 0])
