"""Whole builds of tiny decoders, through the real export and the real engine."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, numpy_helper
from safetensors.torch import load_file

from enginehouse_builder.certify import read_continuations
from enginehouse_builder.decoder_file import cache_bytes, opened_decoder
from enginehouse_builder.display import Display
from enginehouse_builder.errors import CertificateError, PublishError, SpecError
from enginehouse_builder.inspect.verify import faults_of
from enginehouse_builder.manifest import Manifest, read_manifest
from enginehouse_builder.pipeline import build
from enginehouse_builder.publish import Published
from enginehouse_builder.spec import BuildSpec
from enginehouse_server.engine.decoder import DecoderEngine, DecoderSpec, LayerGeometry, StepItem
from tests.builder.conftest import DECODER, BuiltDecoder, DecoderCheckpoint
from tests.builder.test_adapter import LLAMA, make_adapter
from tests.fixtures.decoders import ORIGINAL_LENGTH


@pytest.fixture
def spec(decoder_checkpoint: DecoderCheckpoint, cache_folder: Path, tmp_path: Path) -> BuildSpec:
    return BuildSpec(
        model=str(decoder_checkpoint("llama")),
        repository=tmp_path / "repository",
        cache=cache_folder,
        name=DECODER,
        max_batch=4,
        certify_minutes=0,
    )


def _build(spec: BuildSpec) -> Published:
    return build(spec, Display(quiet=True))


def _engine_spec(folder: Path, manifest: Manifest) -> DecoderSpec:
    [engine] = manifest.decoders
    assert manifest.generate is not None
    spec = DecoderSpec(
        model=folder / engine.model,
        precision=engine.precision,
        cache_precision=engine.cache_precision,
        layers=tuple(LayerGeometry(*astuple(layer)) for layer in manifest.generate.layers),
        vocab_size=manifest.generate.vocab_size,
        max_tokens=manifest.limits.max_tokens,
        max_step_tokens=manifest.limits.max_batch_tokens,
        max_sequences=manifest.limits.max_batch,
        cache_bytes=0,
        num_threads=2,
        attention=engine.attention,
    )
    return replace(spec, cache_bytes=cache_bytes(spec, 512))


def _continued(engine: DecoderEngine, prompt: Sequence[int], num_new: int) -> list[int]:
    tokens: list[int] = []
    place, piece = 0, [*prompt]
    for _ in range(num_new):
        engine.start([StepItem(range(8), place, piece)])
        tokens.append(int(engine.wait()[0].argmax()))
        place, piece = place + len(piece), tokens[-1:]
    return tokens


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_version_is_complete(built_decoder: BuiltDecoder, precision: str) -> None:
    folder = built_decoder(precision)
    manifest = read_manifest(folder)
    [engine] = manifest.decoders
    certificate = engine.certificate
    assert not faults_of(folder, manifest)
    assert (manifest.task, manifest.engines, manifest.buckets) == ("generate", (), ())
    assert engine.precision == precision
    assert engine.cache_precision == ("fp32" if precision == "fp32" else "u8")
    is_canonical = precision == "fp32"
    assert engine.model == ("model.onnx" if is_canonical else "engines/openvino/model.onnx")
    assert astuple(manifest.limits) == (96, 4, 512)
    assert certificate.num_prompts == 17
    assert certificate.longest_prompt == 72
    assert 0 < certificate.max_abs_error <= certificate.tolerance * certificate.scale
    assert {time.kind for time in engine.step_times} == {"prefill", "decode"}
    assert max(time.num_sequences for time in engine.step_times) == 4
    stages = [stage.stage for stage in manifest.build if stage.stage != "quantize"]
    assert stages == ["resolve", "export", "reference", "certify", "measure", "publish"]
    assert (folder / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_mixture_of_experts_is_built(
    spec: BuildSpec, decoder_checkpoint: DecoderCheckpoint, precision: str
) -> None:
    model = str(decoder_checkpoint("qwen3_moe"))
    published = _build(replace(spec, model=model, precision=precision))  # type: ignore[arg-type]
    [engine] = read_manifest(published.folder).decoders
    assert engine.certificate.top1_agreement == 1 or precision != "fp32"
    tensors = onnx.load(published.folder / engine.model, load_external_data=False).graph.initializer
    kinds = {tensor.name: tensor.data_type for tensor in tensors}
    num_products = 2 * 2 * 8  # of 2 layers with 8 experts each
    experts = [kind for name, kind in kinds.items() if ".experts." in name and "steps" not in name]
    kept = TensorProto.FLOAT if precision == "fp32" else TensorProto.INT8
    assert experts == [kept] * num_products
    routers = [kind for name, kind in kinds.items() if ".mlp.gate." in name]
    assert routers == [TensorProto.FLOAT] * 2  # whatever the precision


def test_an_fp32_engine_says_what_transformers_says(
    built_decoder: BuiltDecoder, decoder_checkpoint: DecoderCheckpoint
) -> None:
    folder = built_decoder("fp32")
    manifest = read_manifest(folder)
    assert manifest.decoders[0].certificate.token_agreement == 1
    assert manifest.decoders[0].certificate.perplexity == pytest.approx(
        manifest.decoders[0].certificate.reference_perplexity, rel=1e-5
    )
    reference = read_continuations(folder / manifest.reference.path)
    original = transformers.AutoModelForCausalLM.from_pretrained(
        decoder_checkpoint("llama"), attn_implementation="eager"
    )
    for text in reference.continuations[:4]:
        ids = torch.tensor([text.prompt])
        found = original.generate(  # type: ignore[misc]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(text.tokens),
            do_sample=False,
            eos_token_id=None,
        )
        assert tuple(found[0, len(text.prompt) :].tolist()) == text.tokens
    with opened_decoder(_engine_spec(folder, manifest)) as engine:
        for text in reference.continuations[:4]:
            assert _continued(engine, text.prompt, len(text.tokens)) == [*text.tokens]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_version_answers_its_probes(built_decoder: BuiltDecoder, precision: str) -> None:
    folder = built_decoder(precision)
    manifest = read_manifest(folder)
    [built] = manifest.decoders
    assert len(built.probes) == 4
    with opened_decoder(_engine_spec(folder, manifest)) as engine:
        for probe in built.probes:
            assert _continued(engine, probe.prompt, len(probe.tokens)) == [*probe.tokens]
            engine.start([StepItem(range(8), 0, probe.prompt)])
            logits = engine.wait()[0]
            assert [int(i) for i, _ in probe.top] == np.argsort(-logits)[: len(probe.top)].tolist()
            np.testing.assert_allclose(
                [logit for _, logit in probe.top],
                np.sort(logits)[::-1][: len(probe.top)],
                atol=1e-4,
            )


def test_the_reference_file_holds_probabilities(built_decoder: BuiltDecoder) -> None:
    folder = built_decoder("fp32")
    long, *short = read_continuations(folder / "reference.json").continuations
    assert long.prompt_losses == ()
    for text in short:
        assert len(text.prompt_losses) == len(text.prompt) - 1
        assert tuple(ids[0] for ids in text.top_ids) == text.tokens
        shares = np.exp(np.array(text.top_logits) - np.array(text.log_sums)[:, None])
        assert (shares.sum(axis=1) <= 1 + 1e-6).all()
        assert (np.diff(shares, axis=1) <= 0).all()


def test_an_identical_build_makes_nothing_again(
    built_decoder: BuiltDecoder, spec: BuildSpec
) -> None:
    first = read_manifest(built_decoder("int8"))
    published = _build(replace(spec, precision="int8"))
    seconds = {stage.stage: stage.seconds for stage in published.manifest.build}
    assert {seconds[s] for s in ("export", "quantize", "certify", "measure")} == {0}
    same = replace(
        published.manifest, created=first.created, build=first.build, version=first.version
    )
    assert same == first


def test_a_window_is_passed_and_the_engine_still_exact(
    decoder_checkpoint: DecoderCheckpoint, spec: BuildSpec
) -> None:
    published = _build(replace(spec, model=str(decoder_checkpoint("mistral"))))
    [engine] = published.manifest.decoders
    assert published.manifest.generate
    assert {layer.window for layer in published.manifest.generate.layers} == {8}
    assert engine.certificate.longest_prompt > 8
    assert engine.certificate.token_agreement == 1


@pytest.mark.wide
@pytest.mark.parametrize("family", ["gptj", "bloom", "falcon_rw", "openai-gpt"])
def test_attention_outside_the_interface_is_certified(
    family: str, decoder_checkpoint: DecoderCheckpoint, spec: BuildSpec
) -> None:
    published = _build(replace(spec, model=str(decoder_checkpoint(family)), task="generate"))
    [engine] = published.manifest.decoders
    assert engine.certificate.token_agreement == 1


def test_a_merged_adapter_is_what_is_served(
    built_decoder: BuiltDecoder,
    decoder_checkpoint: DecoderCheckpoint,
    spec: BuildSpec,
    tmp_path: Path,
) -> None:
    base = decoder_checkpoint("llama")
    weights = load_file(base / "model.safetensors")
    make_adapter(tmp_path / "adapter", weights, LLAMA, lora_alpha=20)
    published = _build(replace(spec, adapter=tmp_path / "adapter"))
    manifest = published.manifest
    assert manifest.source.id.endswith(" + adapter")
    assert manifest.decoders[0].certificate.token_agreement == 1
    assert "merge" in {stage.stage for stage in manifest.build}
    plain = read_continuations(built_decoder("fp32") / "reference.json").continuations
    changed = read_continuations(published.folder / "reference.json").continuations
    assert [t.prompt for t in plain] == [t.prompt for t in changed]
    assert [t.tokens for t in plain] != [t.tokens for t in changed]


@pytest.fixture
def own_cache(built_decoder: BuiltDecoder, spec: BuildSpec, tmp_path: Path) -> BuildSpec:
    """The same build with a copy of the cache, whose exported graph is damaged."""
    built_decoder("fp32")
    cache = Path(shutil.copytree(spec.cache, tmp_path / "cache"))
    for file in cache.glob("export/*/model.onnx"):
        model = onnx.load(file)
        largest = max(model.graph.initializer, key=lambda i: math.prod(i.dims))
        matrix = numpy_helper.to_array(largest)
        largest.CopyFrom(numpy_helper.from_array(-matrix, largest.name))
        file.chmod(0o644)
        onnx.save(model, file)
    return replace(spec, cache=cache)


def test_a_broken_engine_fails_with_figures_and_publishes_nothing(own_cache: BuildSpec) -> None:
    shutil.rmtree(own_cache.cache / "certify")
    with pytest.raises(CertificateError, match=r"a logit is off by .* is allowed\. Furthest off"):
        _build(own_cache)
    assert not list(own_cache.repository.rglob("*"))
    assert not list((own_cache.cache / "certify").glob("*"))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_wrong_conversion_is_not_taken_for_rounding(
    decoder_checkpoint: DecoderCheckpoint, spec: BuildSpec, precision: str
) -> None:
    spec = replace(spec, model=str(decoder_checkpoint("mistral")), cache=spec.repository / "cache")
    _build(spec)
    for file in spec.cache.glob("export/*/model.onnx"):
        model = onnx.load(file)
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Attention" and attribute.name == "window":
                    attribute.i -= 1
        file.chmod(0o644)
        onnx.save(model, file)
    with pytest.raises(CertificateError, match=r"the fp32 engine .* does not survive the conver"):
        _build(replace(spec, precision=precision))  # type: ignore[arg-type]


def test_what_was_certified_is_what_is_published(own_cache: BuildSpec) -> None:
    with pytest.raises(PublishError, match="was changed since it was made"):
        _build(own_cache)
    assert not list(own_cache.repository.rglob("*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch": 8, "max_batch_tokens": 4, "task": "generate"}, "must fit"),
        ({"max_tokens": 97}, "--max-tokens 97 is more than the 96"),
        ({"max_tokens": 1}, "leaves no room for an answer"),
        ({"cache_precision": "bf16"}, "use --cache-precision fp32 or u8"),
        ({"precision": "int8", "cache_precision": "bf16"}, "use --cache-precision fp32 or u8"),
        ({"certify_minutes": -1.0}, "--certify-minutes is -1"),
        ({"certify_minutes": float("nan")}, "--certify-minutes is nan"),
    ],
)
def test_what_cannot_be_is_refused(
    spec: BuildSpec, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        _build(replace(spec, **settings))  # type: ignore[arg-type]
    assert not list(spec.repository.rglob("*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int4"}, "openvino has no int4 for classifiers"),
        ({"cache_precision": "u8"}, "--cache-precision is for decoders"),
    ],
)
def test_a_classifier_has_no_settings_of_decoders(
    checkpoint: DecoderCheckpoint, spec: BuildSpec, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        _build(replace(spec, model=str(checkpoint("bert")), **settings))  # type: ignore[arg-type]


def test_a_model_beyond_the_memory_is_refused_with_the_figures(
    spec: BuildSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginehouse_builder.memory.available_bytes", lambda: 100_000)
    with pytest.raises(SpecError, match=r"million weights: its build takes about .* are free"):
        _build(spec)


def test_a_build_beyond_the_length_of_its_rope_says_so(
    decoder_checkpoint: DecoderCheckpoint, spec: BuildSpec
) -> None:
    published = _build(replace(spec, model=str(decoder_checkpoint("phi3_longrope")), max_tokens=96))
    [engine] = published.manifest.decoders
    assert published.manifest.limits.max_tokens == 96
    assert engine.certificate.longest_prompt > ORIGINAL_LENGTH
    assert engine.certificate.token_agreement == 1
    assert engine.certificate.reference.endswith("fp32 with the rope of texts of 96 tokens")


def test_a_rope_that_is_one_length_s_alone_is_said_to_be(
    decoder_checkpoint: DecoderCheckpoint, spec: BuildSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    build(replace(spec, model=str(decoder_checkpoint("llama_dynamic")), max_tokens=70), Display())
    assert "the rope of texts of 70 tokens for shorter ones too" in capfd.readouterr().err
