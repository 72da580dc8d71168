"""Adapters in peft's form, merged by hand here and by the builder."""

import json
import shutil
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from enginehouse_builder.adapter import layout_of, merge, read_adapter
from enginehouse_builder.errors import ResolveError, UnsupportedModelError
from enginehouse_builder.resolve import resolve
from enginehouse_builder.spec import BuildSpec
from tests.builder.conftest import DecoderCheckpoint

RANK = 4
LLAMA = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
SQUARE = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj")
GPT2 = ("transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj")  # the second is square


def make_adapter(
    folder: Path, weights: dict[str, torch.Tensor], modules: tuple[str, ...], **settings: object
) -> dict[str, torch.Tensor]:
    """Writes an adapter for modules of a model; gives the product of each one's matrices."""
    folder.mkdir(exist_ok=True)
    own_ranks = cast(dict[str, int], settings.get("rank_pattern", {}))
    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, torch.Tensor] = {}
    products = {}
    for module in modules:
        is_turned = module in GPT2
        rank = next((r for name, r in own_ranks.items() if module.endswith(name)), RANK)
        out, width = weights[f"{module}.weight"].shape[:: -1 if is_turned else 1]
        a, b = (
            torch.randn(shape, generator=generator) * 0.3 for shape in ((rank, width), (out, rank))
        )
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        products[module] = (b @ a).T if is_turned else b @ a
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return products


def _merged(base: Path, adapter: Path, target: Path) -> dict[str, torch.Tensor]:
    target.mkdir()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    layout = layout_of(model)
    merge(base, layout, read_adapter(adapter), target, lambda _: None)
    return load_file(target / "model.safetensors")


@pytest.mark.parametrize(
    ("family", "modules", "settings", "scales"),
    [
        ("llama", LLAMA, {}, (1.5, 1.5)),
        ("llama", LLAMA, {"use_rslora": True}, (3.0, 3.0)),
        ("llama", LLAMA, {"alpha_pattern": {"down_proj": 8, "q_proj": 4}}, (1.0, 2.0)),
        ("llama", LLAMA, {"rank_pattern": {"layers.0.self_attn.q_proj": 2}}, (3.0, 1.5)),
        ("gpt2", GPT2, {"fan_in_fan_out": True}, (1.5, 1.5)),
        ("gpt2", GPT2, {"fan_in_fan_out": False}, (1.5, 1.5)),
        ("llama", SQUARE, {"fan_in_fan_out": True}, (1.5, 1.5)),
    ],
)
def test_merged_weights_are_base_and_scaled_product(
    decoder_checkpoint: DecoderCheckpoint,
    tmp_path: Path,
    family: str,
    modules: tuple[str, ...],
    settings: dict[str, object],
    scales: tuple[float, float],
) -> None:
    base = decoder_checkpoint(family)
    weights = load_file(base / "model.safetensors")
    products = make_adapter(tmp_path / "adapter", weights, modules, **settings)
    found = _merged(base, tmp_path / "adapter", tmp_path / "merged")
    for module, scale in zip(modules, scales, strict=True):
        weights[f"{module}.weight"] += scale * products[module]
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)
    assert (tmp_path / "merged" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_small_changes_of_a_bf16_base_are_kept(
    decoder_checkpoint: DecoderCheckpoint, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(decoder_checkpoint("llama"), tmp_path / "base"))
    halves = {n: w.bfloat16() for n, w in load_file(base / "model.safetensors").items()}
    save_file(halves, base / "model.safetensors", {"format": "pt"})
    products = make_adapter(tmp_path / "adapter", halves, LLAMA, lora_alpha=0.001)
    found = _merged(base, tmp_path / "adapter", tmp_path / "merged")
    changed = found[f"{LLAMA[0]}.weight"] - halves[f"{LLAMA[0]}.weight"].float()
    torch.testing.assert_close(changed, products[LLAMA[0]] * 0.00025, rtol=0.05, atol=1e-7)
    assert found["model.norm.weight"].dtype == torch.bfloat16


def test_all_but_weights_comes_along(decoder_checkpoint: DecoderCheckpoint, tmp_path: Path) -> None:
    base = Path(shutil.copytree(decoder_checkpoint("llama"), tmp_path / "base"))
    make_adapter(tmp_path / "adapter", load_file(base / "model.safetensors"), LLAMA)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("tools")
    (base / "original").mkdir()
    for name in ("pytorch_model.bin", "original/consolidated.00.pth", "original/a.safetensors"):
        (base / name).write_bytes(b"weights")
    _merged(base, tmp_path / "adapter", tmp_path / "merged")
    found = {str(f.relative_to(tmp_path / "merged")) for f in (tmp_path / "merged").rglob("*.*")}
    assert "additional_chat_templates/tools.jinja" in found
    weights = {name for name in found if name.endswith((".bin", ".pth", ".safetensors"))}
    assert weights == {"model.safetensors"}


def test_a_base_saved_without_its_head_has_shorter_names(
    decoder_checkpoint: DecoderCheckpoint, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(decoder_checkpoint("gpt2"), tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    make_adapter(tmp_path / "adapter", weights, GPT2, fan_in_fan_out=True)
    short = {n.removeprefix("transformer."): w for n, w in weights.items() if n != "lm_head.weight"}
    save_file(short, base / "model.safetensors", {"format": "pt"})
    found = _merged(base, tmp_path / "adapter", tmp_path / "merged")
    assert not torch.equal(found["h.0.attn.c_attn.weight"], short["h.0.attn.c_attn.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "of type 'LOHA'; only LORA"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: whole modules"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "embeddings of its own"),
        ({"layer_replication": [[0, 2]]}, "layers that are repeated"),
        ({"init_lora_weights": "lora_ga"}, "base weights of its own"),
        ({"init_lora_weights": "pissa_niter_4"}, "base weights of its own"),
    ],
)
def test_what_cannot_be_merged_exactly_is_refused_by_name(
    decoder_checkpoint: DecoderCheckpoint,
    tmp_path: Path,
    settings: dict[str, object],
    message: str,
) -> None:
    weights = load_file(decoder_checkpoint("llama") / "model.safetensors")
    make_adapter(tmp_path, weights, LLAMA, **settings)
    with pytest.raises(UnsupportedModelError, match=message):
        read_adapter(tmp_path)


def test_tensors_that_are_no_matrix_of_a_weight_are_refused(
    decoder_checkpoint: DecoderCheckpoint, tmp_path: Path
) -> None:
    weights = load_file(decoder_checkpoint("llama") / "model.safetensors")
    make_adapter(tmp_path, weights, LLAMA)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    odd = "base_model.model.model.embed_tokens.lora_embedding_A"
    save_file({**tensors, odd: torch.zeros(RANK, 8)}, file)
    with pytest.raises(UnsupportedModelError, match="lora_embedding_A"):
        read_adapter(tmp_path)
    first, *_ = sorted(tensors)
    save_file({n: t for n, t in tensors.items() if n != first}, file)
    with pytest.raises(ResolveError, match="one of its two matrices only"):
        read_adapter(tmp_path)


def test_a_weight_that_the_base_does_not_have_is_refused(
    decoder_checkpoint: DecoderCheckpoint, tmp_path: Path
) -> None:
    base = decoder_checkpoint("llama")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.7.other.weight"] = torch.zeros(8, 8)
    make_adapter(tmp_path / "adapter", weights, (*LLAMA, "model.layers.7.other"))
    with pytest.raises(UnsupportedModelError, match=r"changes 'model\.layers\.7\.other'"):
        _merged(base, tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize(("family", "head"), [("llama", "lm_head"), ("gpt_neox", "embed_out")])
def test_a_head_that_is_the_table_of_embeddings_is_refused(
    decoder_checkpoint: DecoderCheckpoint, tmp_path: Path, family: str, head: str
) -> None:
    base = Path(shutil.copytree(decoder_checkpoint(family), tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    weights = load_file(base / "model.safetensors")
    weights.setdefault(f"{head}.weight", torch.zeros(60, 32))  # of no use, but checkpoints have it
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    make_adapter(tmp_path / "adapter", weights, (head,))
    with pytest.raises(UnsupportedModelError, match="tied to the embeddings"):
        _merged(base, tmp_path / "adapter", tmp_path / "merged")


def test_matrices_of_another_model_are_refused(
    decoder_checkpoint: DecoderCheckpoint, tmp_path: Path
) -> None:
    base = decoder_checkpoint("llama")
    weights = {f"{LLAMA[0]}.weight": torch.zeros(48, 48)}
    make_adapter(tmp_path / "adapter", weights, LLAMA[:1])
    with pytest.raises(ResolveError, match="it was trained on another model"):
        _merged(base, tmp_path / "adapter", tmp_path / "merged")


def test_matrices_of_another_rank_than_said_are_refused(
    decoder_checkpoint: DecoderCheckpoint, tmp_path: Path
) -> None:
    base = decoder_checkpoint("llama")
    make_adapter(tmp_path / "adapter", load_file(base / "model.safetensors"), LLAMA, r=8)
    with pytest.raises(ResolveError, match="are of rank 4, and its configuration says 8"):
        _merged(base, tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_lacks_a_file_is_no_adapter(
    decoder_checkpoint: DecoderCheckpoint, tmp_path: Path, file: str
) -> None:
    weights = load_file(decoder_checkpoint("llama") / "model.safetensors")
    make_adapter(tmp_path, weights, LLAMA)
    (tmp_path / file).unlink()
    with pytest.raises(ResolveError, match=file):
        read_adapter(tmp_path)


def test_the_source_says_which_adapter_and_its_hash_stands_for_both(
    decoder_checkpoint: DecoderCheckpoint, tmp_path: Path
) -> None:
    base = decoder_checkpoint("llama")
    weights = load_file(base / "model.safetensors")
    spec = BuildSpec(str(base), Path("r"), Path("c"), name="m")
    hashes = {resolve(spec, lambda _: None).source.sha256}
    for alpha in (1, 2):
        make_adapter(tmp_path / "mine", weights, LLAMA, lora_alpha=alpha)
        with_adapter = BuildSpec(
            str(base), Path("r"), Path("c"), adapter=tmp_path / "mine", name="m"
        )
        source = resolve(with_adapter, lambda _: None).source
        assert source.id == f"{base.name} + mine"
        hashes.add(source.sha256)
    assert len(hashes) == 3


def test_an_adapter_given_as_the_model_is_told_what_to_do(
    decoder_checkpoint: DecoderCheckpoint, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(decoder_checkpoint("llama"), tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    make_adapter(base, weights, LLAMA)
    with pytest.raises(ResolveError, match="give its base model with --model"):
        resolve(BuildSpec(str(base), Path("r"), Path("c"), name="m"), lambda _: None)
