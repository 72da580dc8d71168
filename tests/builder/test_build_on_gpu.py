"""Plans on a machine that has their GPU: run, certified and timed there. It is a double here."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse_builder.display import Display
from enginehouse_builder.errors import CertificateError, UnsupportedModelError
from enginehouse_builder.inspect.verify import faults_of
from enginehouse_builder.pipeline import build
from enginehouse_builder.publish import Published
from enginehouse_builder.spec import BuildSpec
from enginehouse_builder.stages import PLAN_FILE
from enginehouse_server.errors import PlanMismatchError
from enginehouse_server.repository import (
    DecoderSettings,
    LoadSettings,
    load_classifier,
    load_decoder,
)
from tests.builder.conftest import DECODER, MODEL, DecoderCheckpoint
from tests.conftest import Checkpoint
from tests.fixtures.trt_double import DoubleModule, install, install_compiler, install_machine
from tests.fixtures.trt_double.plan_file import VERSION

PLAN = "tensorrt:sm90"


@pytest.fixture
def double(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DoubleModule]:
    module = install(monkeypatch)
    install_machine(monkeypatch, tmp_path_factory.mktemp("machine"), module)
    install_compiler(monkeypatch)
    yield module
    assert not module.faults
    assert all(device.is_closed for device in module.devices)


@pytest.fixture
def classifier(checkpoint: Checkpoint, tmp_path: Path) -> BuildSpec:
    return BuildSpec(
        model=str(checkpoint("bert")),
        repository=tmp_path / "repository",
        cache=tmp_path / "cache",
        name=MODEL,
        max_tokens=70,
        max_batch=4,
    )


@pytest.fixture
def decoder(decoder_checkpoint: DecoderCheckpoint, tmp_path: Path) -> BuildSpec:
    return BuildSpec(
        model=str(decoder_checkpoint("llama")),
        repository=tmp_path / "repository",
        cache=tmp_path / "cache",
        name=DECODER,
        max_batch=4,
        certify_minutes=0,
    )


def _build(spec: BuildSpec, *targets: str) -> Published:
    return build(replace(spec, target=targets), Display(quiet=True))


@pytest.mark.parametrize("family", ["bert", pytest.param("convbert", marks=pytest.mark.slow)])
def test_a_classifier_s_plan_is_certified_and_timed_as_itself(
    family: str, classifier: BuildSpec, checkpoint: Checkpoint, double: DoubleModule
) -> None:
    published = _build(replace(classifier, model=str(checkpoint(family))), PLAN)
    [engine] = published.manifest.engines
    assert engine.plan is not None
    assert engine.plan.certified == "runtime"
    assert engine.certificate.runtime == f"tensorrt {VERSION}"
    assert (engine.runtime_version, engine.device) == (VERSION, "Double GPU")
    assert engine.latency
    assert not faults_of(published.folder, published.manifest)
    loaded = load_classifier(published.folder, LoadSettings(1, max_tokens=32, max_batch=2))
    with closing(loaded.engine):
        assert loaded.chosen == engine
    [file] = [f for f in engine.files if f.path == engine.model]
    # As the double has it, of each profile 4 KiB more than of the one before.
    assert engine.plan.device_bytes == file.size_bytes + 4096 * len(engine.plan.profiles)


def test_a_decoder_s_plan_is_certified_and_timed_as_itself(
    decoder: BuildSpec, double: DoubleModule
) -> None:
    published = _build(decoder, PLAN)
    [engine] = published.manifest.decoders
    assert engine.plan is not None
    assert engine.plan.certified == "runtime"
    assert engine.certificate.runtime == f"tensorrt {VERSION}"
    assert (engine.runtime_version, engine.device) == (VERSION, "Double GPU")
    assert {step.kind for step in engine.step_times} == {"prefill", "decode"}
    assert engine.certificate.token_agreement == 1
    loaded = load_decoder(published.folder, DecoderSettings(1, max_running=2))
    with closing(loaded.engine):
        assert loaded.step_times == engine.step_times


def test_a_plan_that_the_gpu_computes_otherwise_is_not_published(
    classifier: BuildSpec, double: DoubleModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_compiler(monkeypatch, is_wrong=True)
    with pytest.raises(CertificateError, match=f"tensorrt {VERSION}"):
        _build(classifier, PLAN)
    assert not list(classifier.repository.glob("*/*"))


def test_a_plan_that_is_compiled_again_is_certified_again(
    classifier: BuildSpec, double: DoubleModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    _build(classifier, PLAN)
    [plan] = classifier.cache.rglob(PLAN_FILE)
    shutil.rmtree(plan.parent)  # as a cache does that has become too large
    install_compiler(monkeypatch, is_wrong=True)
    with pytest.raises(CertificateError, match=f"tensorrt {VERSION}"):
        _build(classifier, PLAN)


def test_where_the_device_cannot_be_opened_the_lowered_graph_is_certified(
    classifier: BuildSpec, double: DoubleModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PlanMismatchError("the CUDA binding is not installed")

    monkeypatch.setattr("enginehouse_server.engine.tensorrt.device.open_device", refuse)
    [engine] = _build(classifier, PLAN).manifest.engines
    assert engine.plan is not None
    assert engine.plan.certified == "lowered"
    assert f"in place of tensorrt {VERSION}" in engine.certificate.runtime
    assert not engine.latency


def test_auto_leaves_out_a_plan_that_does_not_fit_into_the_gpu(
    classifier: BuildSpec,
    double: DoubleModule,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = install(monkeypatch, memory_bytes=1 << 16)
    published = build(replace(classifier, target=("auto",)), Display())
    assert [e.backend for e in published.manifest.engines] == ["openvino", "onnxruntime"]
    assert "auto leaves out tensorrt:sm90=fp32" in capsys.readouterr().err
    assert not module.faults
    with pytest.raises(UnsupportedModelError, match="MiB of the device"):
        _build(classifier, PLAN)
