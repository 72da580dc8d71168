"""Plans that are compiled ahead, without a GPU, and certified by what stands for them."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from enginehouse_builder.display import Display, StageDisplay
from enginehouse_builder.inspect.command import inspect
from enginehouse_builder.inspect.verify import faults_of
from enginehouse_builder.manifest import Plan, read_manifest
from enginehouse_builder.pipeline import build
from enginehouse_builder.publish import Published
from enginehouse_builder.rebuild import RebuildSpec, rebuild
from enginehouse_builder.spec import BuildSpec
from tests.builder.conftest import DECODER, MODEL, DecoderCheckpoint
from tests.conftest import Checkpoint

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
ANY = "tensorrt-rtx:any"


@pytest.fixture
def classifier(checkpoint: Checkpoint, cache_folder: Path, tmp_path: Path) -> BuildSpec:
    return BuildSpec(
        model=str(checkpoint("bert")),
        repository=tmp_path / "repository",
        cache=cache_folder,
        name=MODEL,
        max_tokens=48,
        max_batch=4,
    )


@pytest.fixture
def decoder(decoder_checkpoint: DecoderCheckpoint, cache_folder: Path, tmp_path: Path) -> BuildSpec:
    return BuildSpec(
        model=str(decoder_checkpoint("llama")),
        repository=tmp_path / "repository",
        cache=cache_folder,
        name=DECODER,
        max_batch=4,
        certify_minutes=0,
    )


def _build(spec: BuildSpec, *targets: str) -> Published:
    return build(replace(spec, target=targets), Display(quiet=True))


def _lowered(plan: Plan | None) -> Plan:
    assert plan is not None
    assert (plan.flavour, plan.certified) == ("tensorrt-rtx", "lowered")
    assert plan.device_bytes > 0
    return plan


@pytest.mark.parametrize(
    "precision",
    ["fp16", "int8", "tf32", *(pytest.param(p, marks=pytest.mark.wide) for p in ("bf16", "fp8"))],
)
def test_a_classifier_s_plan_is_certified_by_its_graph(
    classifier: BuildSpec, precision: str
) -> None:
    published = _build(classifier, f"{ANY}={precision}", "openvino")
    plan, openvino = published.manifest.engines
    assert (plan.backend, plan.target, plan.precision) == ("tensorrt-rtx", ANY, precision)
    assert (plan.min_driver, openvino.min_driver) == ("580", "")
    assert published.manifest.limits.max_batch_tokens == 8192
    assert plan.model == "engines/tensorrt-rtx-any/model.plan"
    assert openvino.model == "model.onnx"
    assert not plan.latency
    assert openvino.latency
    assert "in place of tensorrt-rtx" in plan.certificate.runtime
    assert ("rounded to bf16" in plan.certificate.runtime) == (precision == "bf16")
    if precision == "tf32":  # which a processor computes in fp32
        assert plan.certificate.max_abs_error < 1e-5
    else:
        assert plan.certificate.max_abs_error > openvino.certificate.max_abs_error
    profiles = _lowered(plan.plan).profiles
    capabilities = _lowered(plan.plan).compute_capabilities
    assert {"sm120", "sm89"} <= set(capabilities)
    assert ("sm75" in capabilities) == (precision in ("fp16", "int8"))
    assert ("sm86" in capabilities) == (precision != "fp8")
    assert [profile.role for profile in profiles] == ["encode", "encode"]
    assert profiles[-1].inputs[0].max[1] == 48
    assert not faults_of(published.folder, published.manifest)


@pytest.mark.parametrize(
    "precision", ["fp16", "int8", "int4", pytest.param("bf16", marks=pytest.mark.wide)]
)
def test_a_decoder_s_plan_is_certified_by_its_lowered_graph(
    decoder: BuildSpec, precision: str
) -> None:
    published = _build(decoder, f"{ANY}={precision}")
    [engine] = published.manifest.decoders
    assert engine.cache_precision == ("bf16" if precision == "bf16" else "fp16")
    assert (engine.attention, engine.step_times) == ("slots", ())
    assert engine.min_driver == "580"
    plan = _lowered(engine.plan)
    assert plan.slot_tokens == 96
    assert [profile.role for profile in plan.profiles] == ["prefill", "decode"]
    assert plan.profiles[1].inputs[0].max == (4, 1)
    # Sixteen levels are few for weights that were never trained.
    assert engine.certificate.top1_agreement > (0.4 if precision == "int4" else 0.9)
    assert ("sm75" in plan.compute_capabilities) == (precision in ("fp16", "int8"))
    layers = json.loads(
        (published.folder / "engines/tensorrt-rtx-any/model.layers.json").read_text()
    )
    num_rounded = sum(layer["type"] == "DEQUANTIZE" for layer in layers)
    # Two layers of seven matrices, and the head.
    assert num_rounded == (15 if precision in ("int8", "int4") else 0)
    assert not faults_of(published.folder, published.manifest)


def test_a_version_with_a_plan_is_shown(classifier: BuildSpec) -> None:
    published = _build(classifier, f"{ANY}=fp16", "openvino")
    plan = _lowered(published.manifest.engines[0].plan)

    def shown(*arguments: str) -> str:
        found = CliRunner().invoke(inspect, [str(published.folder), *arguments])
        assert found.exit_code == 0, found.output
        return found.stdout

    text = " ".join(shown().split())
    for part in (
        f"engine {ANY} fp16: engines/tensorrt-rtx-any/model.plan",
        f"plan tensorrt-rtx {plan.version}, ",
        f"of a GPU's memory runs on {', '.join(plan.compute_capabilities)} ",
        "certified by the same graph on ONNX Runtime; its first load on a GPU certifies it itself",
        "profiles encode 1x8 to 4x32; encode 1x33 to 4x48",
        " matrix_multiply",
    ):
        assert part in text
    [written, _] = json.loads(shown("--json"))["manifest"]["engines"]
    assert written["plan"]["compute_capabilities"] == list(plan.compute_capabilities)
    shown("--verify")
    layers = published.folder / "engines/tensorrt-rtx-any/model.layers.json"
    layers.unlink()
    layers.write_text("[")
    assert f"layers unknown: {layers} cannot be read" in " ".join(shown().split())


def test_a_second_target_exports_and_asks_nothing_again(classifier: BuildSpec) -> None:
    _build(classifier)
    published = _build(classifier, "openvino", f"{ANY}=fp16")
    seconds = {stage.stage: stage.seconds for stage in published.manifest.build}
    assert seconds["export"] == seconds["reference"] == 0


def test_what_overflows_in_fp16_is_built_in_bf16_and_says_so(
    classifier: BuildSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = tmp_path / "loud"
    loud.mkdir()
    for file in Path(classifier.model).iterdir():
        (loud / file.name).write_bytes(file.read_bytes())
    weights = load_file(loud / "model.safetensors")
    key = "bert.encoder.layer.0.intermediate.dense.weight"
    other = "bert.encoder.layer.0.output.dense.weight"
    factor = np.float32(1e6)  # values far beyond 65504, brought back by the next layer
    weights[key], weights[other] = weights[key] * factor, weights[other] / factor
    save_file(weights, loud / "model.safetensors", metadata={"format": "pt"})
    published = build(replace(classifier, model=str(loud), target=(f"{ANY}=fp16",)), Display())
    [engine] = published.manifest.engines
    assert engine.precision == "bf16"
    assert (
        "does not keep its certificate in fp16, so it is built in bf16" in capsys.readouterr().err
    )


class _Interrupting(Display):
    """Does as Ctrl-C does once the compiler has begun."""

    @contextmanager
    def stage(self, name: str) -> Iterator[StageDisplay]:
        yield _InterruptingStage(name, None, None)


class _InterruptingStage(StageDisplay):
    def report(self, text: str) -> None:
        if text.startswith("compiling "):
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_compilation_leaves_nothing(classifier: BuildSpec, tmp_path: Path) -> None:
    spec = replace(classifier, cache=tmp_path / "cache", target=(f"{ANY}=fp16",))
    with pytest.raises(KeyboardInterrupt):
        build(spec, _Interrupting())
    assert list((tmp_path / "cache").glob("types/*"))
    assert not list((tmp_path / "cache").glob("compile/*"))
    assert not list(spec.repository.glob("*"))


def test_a_rebuild_adds_an_engine_from_the_version_alone(
    classifier: BuildSpec, tmp_path: Path
) -> None:
    first = _build(classifier, "openvino", "onnxruntime=int8")
    again = rebuild(
        RebuildSpec(
            name=MODEL,
            repository=classifier.repository,
            cache=tmp_path / "fresh",
            target=(f"{ANY}=fp16",),
        ),
        Display(quiet=True),
    )
    manifest = read_manifest(again.folder)
    assert (manifest.version, again.folder.name) == (2, "2")
    assert [e.target for e in manifest.engines] == [ANY, "openvino", "onnxruntime"]
    assert manifest.engines[1:] == first.manifest.engines
    assert not faults_of(again.folder, manifest)
    for name in ("model.onnx", "engines/onnxruntime/model.onnx"):
        assert (again.folder / name).samefile(first.folder / name)
    assert "export" not in {stage.stage for stage in manifest.build}
