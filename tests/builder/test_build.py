"""Whole builds of tiny models, through the real export and the real engine."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from enginehouse_builder.certify import read_reference
from enginehouse_builder.display import Display
from enginehouse_builder.engine_file import EngineFile, opened
from enginehouse_builder.errors import (
    CertificateError,
    PublishError,
    SpecError,
    UnsupportedModelError,
)
from enginehouse_builder.inspect.verify import faults_of
from enginehouse_builder.manifest import Manifest, read_manifest
from enginehouse_builder.pipeline import build
from enginehouse_builder.publish import Published
from enginehouse_builder.spec import BuildSpec
from enginehouse_builder.tasks.classify import classifier_limits
from enginehouse_server.engine.base import Shape
from enginehouse_server.text import TextInput, Tokenizer
from tests.builder.conftest import MODEL, Built
from tests.conftest import Checkpoint


@pytest.fixture
def spec(checkpoint: Checkpoint, cache_folder: Path, tmp_path: Path) -> BuildSpec:
    return BuildSpec(
        model=str(checkpoint("bert")),
        repository=tmp_path / "repository",
        cache=cache_folder,
        name=MODEL,
        max_tokens=48,
        max_batch=4,
    )


def _build(spec: BuildSpec) -> Published:
    return build(spec, Display(quiet=True))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_version_is_complete(built: Built, precision: str) -> None:
    folder = built(precision)
    manifest = read_manifest(folder)
    [engine] = manifest.engines
    assert not faults_of(folder, manifest)
    assert (manifest.model, folder.name) == (MODEL, str(manifest.version))
    assert engine.precision == precision
    assert engine.model == {"fp32": "model.onnx", "int8": "engines/openvino/model.onnx"}[precision]
    assert manifest.limits.max_tokens == 48
    assert manifest.limits.max_batch_tokens == 1024
    assert engine.certificate.num_samples >= 100
    assert engine.latency
    assert 4 <= len(engine.probes) <= 8
    stages = [stage.stage for stage in manifest.build]
    assert [s for s in stages if s != "quantize"] == [
        *("resolve", "export", "reference", "certify", "measure", "publish")
    ]
    assert manifest.tools["openvino"].startswith("2026")


def _answers(folder: Path, manifest: Manifest, inputs: list[TextInput]) -> list[list[float]]:
    tokenizer = Tokenizer(folder / "tokenizer/tokenizer.json", manifest.limits.max_tokens)
    [engine] = manifest.engines
    assert manifest.classify
    names = tuple(tensor.name for tensor in manifest.inputs)
    file = EngineFile(
        folder / engine.model, engine.precision, names, manifest.classify.pad_id, 1024, 2
    )
    answers = []
    with opened(file) as opened_engine:
        for row in tokenizer.encode(inputs, truncate=True):
            opened_engine.lanes[0].start([row], Shape(1, len(row.ids)))
            answers.append(opened_engine.lanes[0].wait()[0].tolist())
    return answers


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_version_answers_its_probes_and_keeps_to_the_reference(
    built: Built, precision: str
) -> None:
    folder = built(precision)
    manifest = read_manifest(folder)
    [engine] = manifest.engines
    probes = [TextInput(probe.text, probe.text_pair) for probe in engine.probes]
    exact = [probe.logits for probe in engine.probes]
    np.testing.assert_allclose(_answers(folder, manifest, probes), exact, atol=1e-5)
    reference = read_reference(folder / manifest.reference.path)
    inputs = [TextInput(answer.text, answer.text_pair) for answer in reference.answers]
    certificate = engine.certificate
    errors = np.abs(
        np.array(_answers(folder, manifest, inputs))
        - np.array([answer.logits for answer in reference.answers])
    )
    assert errors.max() <= certificate.max_abs_error + 1e-5
    assert errors.max() <= certificate.tolerance * certificate.scale


def test_an_identical_build_makes_nothing_again(built: Built, spec: BuildSpec) -> None:
    first = read_manifest(built("fp32"))
    published = _build(spec)
    seconds = {stage.stage: stage.seconds for stage in published.manifest.build}
    assert seconds["export"] == seconds["certify"] == seconds["measure"] == 0
    same = replace(published.manifest, created=first.created, build=first.build, version=1)
    assert same == replace(first, version=1)


def test_another_precision_does_not_export_again(built: Built, spec: BuildSpec) -> None:
    built("fp32")
    published = _build(replace(spec, precision="int8"))
    assert {s.stage: s.seconds for s in published.manifest.build}["export"] == 0


def test_other_labels_with_the_same_weights_are_exported_again(
    built: Built, spec: BuildSpec, tmp_path: Path
) -> None:
    built("fp32")
    model = Path(shutil.copytree(spec.model, tmp_path / "model"))
    config = model / "config.json"
    document = json.loads(config.read_text())
    document["id2label"]["0"] = "first"
    config.write_text(json.dumps(document))
    published = _build(replace(spec, model=str(model)))
    assert published.manifest.classify
    assert published.manifest.classify.labels[0] == "first"


@pytest.fixture
def own_cache(built: Built, spec: BuildSpec, tmp_path: Path) -> BuildSpec:
    """The same build with a copy of the cache, to damage."""
    built("fp32")
    return replace(spec, cache=Path(shutil.copytree(spec.cache, tmp_path / "cache")))


def _damage(cache: Path) -> None:
    """Turns the largest matrix of every exported graph round; the files keep their sizes."""
    for file in cache.glob("export/*/model.onnx"):
        model = onnx.load(file)
        largest = max(model.graph.initializer, key=lambda i: math.prod(i.dims))
        matrix = numpy_helper.to_array(largest)
        largest.CopyFrom(numpy_helper.from_array(-matrix, largest.name))
        file.chmod(0o644)
        onnx.save(model, file)


def test_a_broken_engine_fails_with_figures_and_publishes_nothing(own_cache: BuildSpec) -> None:
    for stage in ("padding", "certify"):
        shutil.rmtree(own_cache.cache / stage)
    _damage(own_cache.cache)
    with pytest.raises(CertificateError, match=r"off by .* is allowed\. Furthest off"):
        _build(own_cache)
    assert not list(own_cache.repository.rglob("*"))
    assert not list((own_cache.cache / "certify").glob("*"))


def test_an_original_that_gives_no_numbers_is_refused(spec: BuildSpec, tmp_path: Path) -> None:
    model = Path(shutil.copytree(spec.model, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"][1] = math.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="gives no number for 133 of 133 samples"):
        _build(replace(spec, model=str(model)))


def test_an_engine_opens_with_the_lanes_it_is_measured_with(built: Built) -> None:
    manifest = read_manifest(built("fp32"))
    names = tuple(tensor.name for tensor in manifest.inputs)
    file = EngineFile(built("fp32") / "model.onnx", "fp32", names, 0, 64, 2, num_lanes=2)
    with opened(file) as engine:
        assert len(engine.lanes) == 2


def test_what_was_certified_is_what_is_published(own_cache: BuildSpec) -> None:
    _damage(own_cache.cache)
    with pytest.raises(PublishError, match="was changed since it was made"):
        _build(own_cache)
    assert not list(own_cache.repository.rglob("*"))


@pytest.mark.slow
def test_a_model_that_padding_changes_is_marked(checkpoint: Checkpoint, spec: BuildSpec) -> None:
    model = str(checkpoint("convbert"))
    published = _build(replace(spec, model=model, max_tokens=24))
    assert published.manifest.classify
    assert published.manifest.classify.padding == "equal_length"
    assert published.manifest.engines[0].certificate.max_abs_error < 1e-4


@pytest.mark.slow
def test_padding_is_tried_where_no_own_sample_and_no_batch_has_any(
    checkpoint: Checkpoint, spec: BuildSpec, tmp_path: Path
) -> None:
    samples = tmp_path / "samples.txt"
    samples.write_text("one text\nsix more\n" + "a long text that is cut to the longest row\n" * 2)
    model = str(checkpoint("convbert"))
    published = _build(replace(spec, model=model, max_tokens=24, max_batch=1, samples=samples))
    assert published.manifest.classify
    assert published.manifest.classify.padding == "equal_length"


def test_own_samples_are_what_is_asked(built: Built, spec: BuildSpec, tmp_path: Path) -> None:
    built("fp32")
    samples = tmp_path / "samples.txt"
    samples.write_text("one text\nanother\tand its pair\n")
    published = _build(replace(spec, samples=samples))
    assert published.manifest.engines[0].certificate.num_samples == 2
    assert published.manifest.classify
    assert published.manifest.classify.padding == "invariant"
    assert {probe.text_pair for probe in published.manifest.engines[0].probes} == {
        *(None, "and its pair")
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "--max-tokens is 0"),
        ({"max_batch": -1}, "--max-batch is -1"),
        ({"max_tokens": 64, "max_batch_tokens": 32}, "one row of --max-tokens 64 must fit"),
        ({"samples": Path("missing")}, "cannot be read"),
        ({"name": "Not A Name"}, "Not A Name"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_slow(
    spec: BuildSpec, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    cache = tmp_path / "untouched"
    with pytest.raises(SpecError, match=message):
        _build(replace(spec, cache=cache, **settings))  # type: ignore[arg-type]
    assert not cache.exists()


def test_the_batch_limit_follows_the_longest_row(spec: BuildSpec) -> None:
    assert classifier_limits(spec, 100).max_batch_tokens == 1024
    assert classifier_limits(spec, 4000).max_batch_tokens == 4000
    assert classifier_limits(spec, 100, for_gpu=True).max_batch_tokens == 8192
    asked = replace(spec, max_batch_tokens=300)
    for for_gpu in (False, True):
        assert classifier_limits(asked, 100, for_gpu=for_gpu).max_batch_tokens == 300
