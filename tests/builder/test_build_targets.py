"""Versions with engines of several runtimes, from one canonical graph."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from enginehouse_builder.cli import build as build_command
from enginehouse_builder.display import Display
from enginehouse_builder.errors import SpecError
from enginehouse_builder.host import Host
from enginehouse_builder.inspect.verify import faults_of
from enginehouse_builder.manifest import read_manifest
from enginehouse_builder.pipeline import build
from enginehouse_builder.publish import Published
from enginehouse_builder.spec import BuildSpec
from enginehouse_builder.targets import Target, Targets, targets_of
from enginehouse_server.engine.base import Precision
from enginehouse_server.errors import PlanMismatchError
from enginehouse_server.repository import (
    DecoderSettings,
    LoadedClassifier,
    LoadedDecoder,
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


def test_a_classifier_in_fp16_is_certified_on_the_processor_and_left_to_gpus(
    classifier: BuildSpec,
) -> None:
    published = _build(classifier, "onnxruntime=fp16", "openvino")
    openvino, half = published.manifest.engines
    assert (half.target, half.precision) == ("onnxruntime", "fp16")
    assert half.certificate.runtime.endswith("in place of its CUDA provider: the graph in fp16")
    assert openvino.certificate.max_abs_error < half.certificate.max_abs_error
    assert not half.latency, "it does not run here"
    whole, narrow = (sum(f.size_bytes for f in e.files) for e in (openvino, half))
    assert narrow < 0.7 * whole
    assert not faults_of(published.folder, published.manifest)
    _serves_openvino_alone(published)


def test_a_decoder_in_fp16_is_certified_on_the_processor_and_left_to_gpus(
    decoder: BuildSpec,
) -> None:
    published = _build(decoder, "onnxruntime=fp16", "openvino")
    openvino, half = published.manifest.decoders
    assert (half.precision, half.cache_precision) == ("fp16", "fp16")
    assert half.certificate.runtime.endswith("in place of its CUDA provider: the graph in fp16")
    assert openvino.certificate.max_abs_error < half.certificate.max_abs_error
    assert half.certificate.top1_agreement > 0.9
    assert not half.step_times, "it does not run here"
    assert not faults_of(published.folder, published.manifest)
    _serves_openvino_alone(published)


def _serves_openvino_alone(published: Published) -> None:
    """And says of ONNX Runtime's engine why it cannot."""

    def load(required: str) -> LoadedClassifier | LoadedDecoder:
        if published.manifest.decoders:
            return load_decoder(published.folder, DecoderSettings(1, required=required))
        return load_classifier(published.folder, LoadSettings(1, required=required))

    best = load("")
    assert best.engine.backend == "openvino"
    best.engine.close()
    with pytest.raises(PlanMismatchError, match=r"onnxruntime computing in fp16.* does not"):
        load("onnxruntime")


def test_a_decoder_is_rebuilt_from_the_version_alone(decoder: BuildSpec, tmp_path: Path) -> None:
    first = _build(decoder, "openvino")
    found = CliRunner().invoke(
        build_command,
        [
            *("--rebuild", "--name", f"{DECODER}=1", "--target", "onnxruntime=int8", "--quiet"),
            *("--repository", str(decoder.repository), "--cache-dir", str(tmp_path / "fresh")),
        ],
    )
    assert found.exit_code == 0, found.output
    folder = first.folder.with_name("2")
    manifest = read_manifest(folder)
    openvino, rebuilt = manifest.decoders
    assert (openvino,) == first.manifest.decoders, "with its certificate and times"
    assert (rebuilt.target, rebuilt.precision) == ("onnxruntime", "int8")
    assert rebuilt.certificate.samples_sha256 == openvino.certificate.samples_sha256
    assert rebuilt.certificate.reference == openvino.certificate.reference
    assert rebuilt.certificate.mean_kl > 0
    assert {time.kind for time in rebuilt.step_times} == {"prefill", "decode"}
    assert not faults_of(folder, manifest)
    for file in (*manifest.canonical, manifest.reference):
        assert (folder / file.path).samefile(first.folder / file.path)
    assert {stage.stage for stage in manifest.build}.isdisjoint({"resolve", "export", "reference"})
    loaded = load_decoder(folder, DecoderSettings(1, required="onnxruntime"))
    assert loaded.chosen == rebuilt
    loaded.engine.close()


CPU = Host({"tensorrt": "tensorrt is not installed"})
ADA = Host({"tensorrt": "tensorrt is not installed"}, "sm89")


def _targets(asked: tuple[str, ...], precision: Precision = "fp32", host: Host = CPU) -> Targets:
    return targets_of(asked, precision, host, "enginehouse build --model tiny")


def test_without_a_target_it_is_openvino() -> None:
    assert _targets((), "int8").chosen == (Target("openvino", "int8"),)


def test_with_a_gpu_it_is_all_that_can_be_built_and_what_cannot_is_said() -> None:
    found = _targets((), "fp16", ADA)
    assert [target.name for target in found.chosen] == ["tensorrt-rtx:sm89", "onnxruntime"]
    assert [reason.partition(":")[0] for reason in found.left_out] == ["tensorrt", "openvino"]


def test_auto_leaves_plans_to_those_who_name_them_where_there_is_no_gpu() -> None:
    found = _targets(("auto", "tensorrt-rtx:any=fp16"))
    assert [target.name for target in found.chosen] == [
        *("tensorrt-rtx:any", "openvino", "onnxruntime")
    ]
    assert found.left_out == ("tensorrt: tensorrt is not installed",)


def test_auto_leaves_out_what_a_task_has_no_precision_for() -> None:
    found = _targets(("auto=int4",), host=ADA)
    with pytest.raises(SpecError, match=r"auto finds nothing to build on this machine: .*int4"):
        found.for_task("classify")


def test_a_target_may_have_its_own_precision_and_the_better_come_first() -> None:
    assert _targets(("onnxruntime=int8 openvino", "tensorrt-rtx:sm89,sm120=fp8")).chosen == (
        Target("tensorrt-rtx", "fp8", ("sm89", "sm120")),
        Target("openvino", "fp32"),
        Target("onnxruntime", "int8"),
    )


def test_names_of_folders_suit_every_file_system() -> None:
    [target] = _targets(("tensorrt-rtx:sm89,sm120",)).chosen
    assert target.folder == "tensorrt-rtx-sm89-sm120"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("abacus",), "--target abacus is unknown: use one of tensorrt, tensorrt-rtx, openvino"),
        (("openvino", "openvino=int8"), "given twice"),
        (("openvino=fp64",), "'openvino=fp64', but its precision must be one of fp32, tf32, bf16"),
        (("openvino=",), "its precision must be one of"),
        (("openvino:sm90",), "compiles for no GPU ahead; write --target openvino"),
        (("openvino=fp16",), "openvino has no fp16: use fp32, bf16, int8 or int4"),
        (("onnxruntime=fp8",), "onnxruntime has no fp8: use fp32, bf16, fp16, int8 or int4"),
        (("tensorrt-rtx:sm90",), "no code for sm90: .* use tensorrt:sm90 .* or onnxruntime="),
        (("tensorrt-rtx:",), "no code for an empty name"),
        (("tensorrt-rtx:sm86=fp8",), "fp8 needs a GPU of sm89 or newer, and this is sm86"),
        (("tensorrt:sm80,sm90",), "one kind of GPU: give a --target each"),
        (("tensorrt",), "no GPU that it could be for; name one"),
        (
            ("tensorrt:sm90=fp16",),
            r"this machine has no GPU; tensorrt is not installed.* compute capability 9.0 and "
            r"TensorRT 11, run\n  enginehouse build --model tiny --target tensorrt:sm90=fp16",
        ),
    ],
)
def test_what_is_no_target_is_refused(asked: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        _targets(asked)


@pytest.mark.parametrize(
    ("targets", "settings", "message"),
    [
        (("openvino", "onnxruntime=bf16"), {}, "onnxruntime=bf16: .* use onnxruntime=fp32"),
        (("onnxruntime",), {"cache_precision": "u8"}, "onnxruntime keeps .* Leave the option out"),
        (("tensorrt:sm90",), {}, "compiled where it is to run"),
        (
            *(("tensorrt-rtx:any=fp8",), {}),
            "tensorrt-rtx has no fp8 for decoders, whose activations are not calibrated.*int8 and "
            "int4 round weights alone.*: use fp32, tf32, bf16, fp16, int8 or int4",
        ),
        (("openvino=tf32",), {}, "openvino has no tf32"),
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
