"""Versions with engines of several runtimes, from one canonical graph."""

from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse_builder.display import Display
from enginehouse_builder.errors import SpecError
from enginehouse_builder.inspect.verify import faults_of
from enginehouse_builder.pipeline import build
from enginehouse_builder.publish import Published
from enginehouse_builder.spec import BuildSpec
from enginehouse_builder.targets import Target, targets_of
from enginehouse_server.repository import (
    DecoderSettings,
    LoadSettings,
    load_classifier,
    load_decoder,
)
from tests.builder.conftest import DECODER, MODEL, DecoderCheckpoint
from tests.conftest import Checkpoint

BOTH = ("openvino", "onnxruntime")


def _build(spec: BuildSpec, *targets: str) -> Published:
    return build(replace(spec, target=targets), Display(quiet=True))


@pytest.fixture
def classifier(checkpoint: Checkpoint, cache_folder: Path, tmp_path: Path) -> BuildSpec:
    return BuildSpec(
        model=str(checkpoint("bert")),
        repository=tmp_path,
        cache=cache_folder,
        name=MODEL,
        max_tokens=48,
        max_batch=4,
    )


@pytest.fixture
def decoder(decoder_checkpoint: DecoderCheckpoint, cache_folder: Path, tmp_path: Path) -> BuildSpec:
    return BuildSpec(
        model=str(decoder_checkpoint("llama")),
        repository=tmp_path,
        cache=cache_folder,
        name=DECODER,
        max_batch=4,
        certify_minutes=0,
    )


def test_engines_of_one_precision_share_their_files(classifier: BuildSpec) -> None:
    published = _build(replace(classifier, precision="int8"), *BOTH)
    manifest = published.manifest
    assert [e.backend for e in manifest.engines] == [*BOTH]
    assert {e.model for e in manifest.engines} == {"engines/openvino/model.onnx"}
    assert not faults_of(published.folder, manifest)
    for engine in manifest.engines:
        assert engine.certificate.runtime == f"{engine.backend} {engine.runtime_version}"
        assert engine.runtime_version == manifest.tools[engine.backend]
        assert engine.precision == "int8"
        assert engine.latency
        assert engine.probes


def test_a_classifier_s_targets_have_a_precision_and_figures_each(classifier: BuildSpec) -> None:
    published = _build(classifier, "onnxruntime=int8", "openvino")
    openvino, onnxruntime = published.manifest.engines
    assert (openvino.backend, openvino.precision) == ("openvino", "fp32")
    assert (onnxruntime.backend, onnxruntime.precision) == ("onnxruntime", "int8")
    assert openvino.model == "model.onnx"
    assert onnxruntime.model == "engines/onnxruntime/model.onnx"
    assert openvino.certificate.max_abs_error < onnxruntime.certificate.max_abs_error
    assert not faults_of(published.folder, published.manifest)
    for backend in BOTH:
        loaded = load_classifier(published.folder, LoadSettings(1, required=backend))
        assert (loaded.engine.backend, loaded.chosen.backend) == (backend, backend)
        assert not loaded.passed_over
        loaded.engine.close()


@pytest.mark.parametrize(
    "asked",
    ["onnxruntime", "onnxruntime=int8", pytest.param("onnxruntime=int4", marks=pytest.mark.wide)],
)
def test_a_decoder_s_targets_are_certified_and_load(decoder: BuildSpec, asked: str) -> None:
    published = _build(decoder, "openvino", asked)
    openvino, onnxruntime = published.manifest.decoders
    assert (openvino.attention, onnxruntime.attention) == ("paged", "slots")
    assert (onnxruntime.backend, onnxruntime.cache_precision) == ("onnxruntime", "fp32")
    assert onnxruntime.precision == (asked.partition("=")[2] or "fp32")
    assert openvino.certificate.token_agreement == 1
    if asked == "onnxruntime":
        assert onnxruntime.certificate.token_agreement == 1
        assert onnxruntime.model == openvino.model == "model.onnx"
    assert {time.kind for time in onnxruntime.step_times} == {"prefill", "decode"}
    assert not faults_of(published.folder, published.manifest)
    best = load_decoder(published.folder, DecoderSettings(1))
    assert best.engine.backend == "openvino"
    best.engine.close()
    other = load_decoder(published.folder, DecoderSettings(1, required="onnxruntime"))
    assert other.engine.backend == "onnxruntime"
    other.engine.close()


def test_without_a_target_it_is_openvino() -> None:
    assert targets_of((), "int8") == (Target("openvino", "int8"),)


def test_a_target_may_have_its_own_precision_and_the_better_come_first() -> None:
    assert targets_of(("onnxruntime=int8", "openvino"), "fp32") == (
        Target("openvino", "fp32"),
        Target("onnxruntime", "int8"),
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("tensorrt",), "--target tensorrt is not built by this version: use openvino or onnx"),
        (("tensorrt-rtx=fp32",), "--target tensorrt-rtx is not built by this version"),
        (("abacus",), "--target abacus is unknown"),
        (("openvino", "openvino=int8"), "given twice"),
        (("openvino=fp64",), "'openvino=fp64', but its precision must be one of fp32, bf16"),
        (("openvino=",), "its precision must be one of"),
    ],
)
def test_what_is_no_target_is_refused(asked: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        targets_of(asked, "fp32")


@pytest.mark.parametrize(
    ("targets", "settings", "message"),
    [
        (("openvino", "onnxruntime=bf16"), {}, "onnxruntime=bf16: .* use onnxruntime=fp32"),
        (("onnxruntime",), {"cache_precision": "u8"}, "onnxruntime keeps .* Leave the option out"),
        (("tensorrt",), {}, "not built by this version"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_slow(
    decoder: BuildSpec,
    tmp_path: Path,
    targets: tuple[str, ...],
    settings: dict[str, object],
    message: str,
) -> None:
    cache = tmp_path / "untouched"
    asked = replace(decoder, cache=cache, **settings)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=message):
        _build(asked, *targets)
    assert not cache.exists()
