"""Classify and Generate on TensorRT plans over gRPC, with a double of the runtime and its GPU."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from enginehouse_builder.manifest import (
    Latency,
    read_manifest,
    read_reference,
    sha256_of,
    write_manifest,
)
from enginehouse_client import Client, OutputOptions, Sampling, Stopping
from enginehouse_server.config import BatchingConfig, GenerateConfig
from enginehouse_server.engine.gpus import Gpu
from enginehouse_server.engine.runtimes import Runtime
from enginehouse_server.errors import UnloadableError
from enginehouse_server.repository import (
    DecoderSettings,
    LoadedClassifier,
    LoadedDecoder,
    LoadSettings,
    load_classifier,
    load_decoder,
)
from tests.fixtures.nvidia_smi import H100_ROW, install_nvidia_smi
from tests.fixtures.plans import GPU_MACHINE
from tests.fixtures.serving import config_of, serving
from tests.fixtures.trt_double import DoubleModule, install, install_machine
from tests.fixtures.trt_double.plan_file import VERSION
from tests.fixtures.trt_double.version import give_plan, give_reference
from tests.integration.conftest import MODEL, WRITER, Writer
from tests.integration.test_generate import greedy

PROMPTS = ((1, 40, 41, 42, 43), tuple(range(1, 80)), tuple(range(60, 90)))
SMALL = {
    "batching": BatchingConfig(max_tokens=32, max_batch=4),
    "generate": GenerateConfig(max_running=3, max_sequence_tokens=160),
}


@pytest.fixture
def double(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DoubleModule]:
    module = install(monkeypatch)
    install_machine(monkeypatch, tmp_path_factory.mktemp("machine"), module)
    yield module
    assert not module.faults
    assert all(device.is_closed for device in module.devices)


@pytest.fixture(scope="module")
def plans(writer: Writer, tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """A classifier and a decoder, each with a plan that was certified as its lowered graph."""
    folder = tmp_path_factory.mktemp("plans") / "repository"
    shutil.copytree(writer.repository, folder)
    give_plan(folder / MODEL / "1", "lowered")
    give_plan(folder / WRITER / "1", "lowered")
    give_reference(folder / WRITER / "1", writer.checkpoint, PROMPTS)
    return Writer(folder, writer.checkpoint)


def test_texts_get_the_original_s_scores(
    plans: Writer, double: DoubleModule, tmp_path: Path
) -> None:
    folder = plans.repository / MODEL / "1"
    answers = read_reference(folder / read_manifest(folder).reference.path).answers
    short = [a for a in answers if a.text_pair is None and len(a.text) < 40][:20]
    with (
        serving(config_of(plans.repository, tmp_path, model=(MODEL,), **SMALL)) as address,
        Client(address) as client,
    ):
        for texts in (short[:1], short):
            results = client.classify(MODEL, [answer.text for answer in texts]).results
            for answer, result in zip(texts, results, strict=True):
                logits = np.array(answer.logits)
                expected = np.exp(logits) / np.exp(logits).sum()
                found = {label.index: label.score for label in result.labels}
                assert [found[i] for i in range(len(expected))] == pytest.approx(expected, abs=1e-4)
        model = client.get_model(MODEL)
    assert model.engine is not None
    assert (model.engine.backend, model.engine.device) == ("tensorrt", "Double GPU")
    assert double.device.graphs, "what was warmed up is launched as graphs"


def test_greedy_tokens_equal_transformers_beside_each_other_and_reuse_prefixes(
    plans: Writer, double: DoubleModule, tmp_path: Path
) -> None:
    asked = {"stopping": Stopping(max_new_tokens=12, ignore_eos=True)}
    output = OutputOptions(token_ids=True)
    prompts = ["The quick brown fox jumps over the lazy dog. " * 3, "a", "Größe"]
    with (
        serving(config_of(plans.repository, tmp_path, model=(WRITER,), **SMALL)) as address,
        Client(address) as client,
    ):
        usages = []
        for prompt in (*prompts, prompts[0] + "Then"):
            ids = list(client.tokenize(WRITER, prompt).token_ids)
            answer = client.generate(WRITER, prompt, output=output, **asked)  # type: ignore[arg-type]
            [found] = answer.sequences
            assert list(found.token_ids) == greedy(plans, ids, 12)
            usages.append(found.usage)
        assert usages[-1] is not None
        assert usages[-1].cached_tokens >= 32, "the first prompt's pages were there already"
        together = client.generate(
            WRITER,
            prompts[0],
            sampling=Sampling(temperature=1.0, seed=3, num_sequences=5),
            output=output,
            **asked,  # type: ignore[arg-type]
        )
        alone = client.generate(
            WRITER,
            prompts[0],
            sampling=Sampling(temperature=1.0, seed=3),
            output=output,
            **asked,  # type: ignore[arg-type]
        )
        assert together.sequences[0].token_ids == alone.sequences[0].token_ids
    assert len(double.device.graphs) == 3, "one for each number of sequences that run"


@pytest.mark.parametrize(("device", "is_kept"), [("Double GPU", True), ("a processor", False)])
def test_limits_and_times_of_a_classifier_are_those_of_the_gpu(
    device: str, is_kept: bool, plans: Writer, double: DoubleModule, tmp_path: Path
) -> None:
    folder = tmp_path / "repository" / MODEL / "1"
    shutil.copytree(plans.repository / MODEL / "1", folder)
    manifest = read_manifest(folder)
    buckets = [b for b in manifest.buckets if b.length <= 32]
    slow = tuple(Latency(batch, b.length, 9e6) for b in buckets for batch in b.batches)
    [engine] = manifest.engines
    (folder / "manifest.json").unlink()
    timed = replace(engine, device=device, latency=slow)
    write_manifest(replace(manifest, engines=(timed,)), folder)
    loaded = load_classifier(folder, LoadSettings(num_threads=1, max_tokens=32))
    with closing(loaded.engine):
        assert len(loaded.engine.lanes) == 2
        assert list(loaded.grid.batches) == [bucket.batches for bucket in buckets]
        assert (loaded.latency.seconds[0][1] > 1e3) == is_kept


def test_limits_and_times_of_a_decoder_are_those_of_the_gpu(
    plans: Writer, double: DoubleModule
) -> None:
    settings = DecoderSettings(num_threads=1, max_running=3, max_tokens=160)
    loaded = load_decoder(plans.repository / WRITER / "1", settings)
    with closing(loaded.engine):
        assert loaded.chosen.step_times == ()
        decodes = [s.num_sequences for s in loaded.step_times if s.kind == "decode"]
        prefills = [s.num_tokens for s in loaded.step_times if s.kind == "prefill"]
        assert decodes == [1, 2]
        assert prefills[-1] == loaded.engine.limits.max_step_tokens
        assert all(step.median_ms > 0 for step in loaded.step_times)
        assert len(double.device.graphs) == 3, "captured before the first request"


def test_what_was_certified_here_once_is_known_at_the_next_start(
    plans: Writer, double: DoubleModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    num_runs = []
    for _ in range(2):
        with serving(config_of(plans.repository, tmp_path, **SMALL)):
            num_runs.append(sum(len(device.log) for device in double.devices))
            double.devices.clear()
    assert num_runs[1] < num_runs[0]
    kept = sorted((tmp_path / "certificates").iterdir())
    found = [json.loads(file.read_text()) for file in kept]
    assert {one["model"] for one in found} == {f"{MODEL} version 1", f"{WRITER} version 1"}
    for one in found:
        assert (one["runtime"], one["device"]) == ("tensorrt 11.4.0.106", "Double GPU")
        assert 0 < one["max_abs_error"] < one["allowed"]
    assert sum("is allowed" in r.message for r in caplog.records) == 4


@pytest.mark.parametrize("model", [MODEL, WRITER])
def test_a_plan_that_is_not_the_original_here_does_not_serve(
    model: str, plans: Writer, double: DoubleModule, tmp_path: Path
) -> None:
    repository, state = tmp_path / "repository", tmp_path / "state"
    shutil.copytree(plans.repository / model, repository / model)
    _falsify(repository / model / "1")
    for _ in range(2):  # found out, and known
        with (
            pytest.raises(UnloadableError, match="can be served"),
            serving(config_of(repository, state, **SMALL)),
        ):
            pass
    [kept] = (state / "certificates").iterdir()
    found = json.loads(kept.read_text())
    assert found["max_abs_error"] > found["allowed"]


def test_what_was_compared_within_lower_limits_is_compared_again_within_higher_ones(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = tmp_path / MODEL / "1", tmp_path / "state"
    shutil.copytree(writer.repository / MODEL / "1", folder)
    give_plan(folder, "lowered")
    found = []
    for max_tokens in (8, 32, 32):
        install(monkeypatch)
        settings = LoadSettings(1, max_tokens=max_tokens, machine=GPU_MACHINE, state_dir=state)
        load_classifier(folder, settings).engine.close()
        kept = [json.loads(file.read_text()) for file in (state / "certificates").iterdir()]
        found.append(sorted(document["num_compared"] for document in kept))
    assert [len(counts) for counts in found] == [1, 2, 2]
    assert found[1][0] < found[1][1]


def _falsify(folder: Path) -> None:
    """Lets the original have said something else."""
    manifest = read_manifest(folder)
    file = folder / manifest.reference.path
    document = json.loads(file.read_text(encoding="utf-8"))
    for answer in document.get("answers", []):
        answer["logits"] = [x + 5 for x in answer["logits"]]
    for text in document.get("continuations", []):
        text["top_logits"] = [[x + 5 for x in row] for row in text["top_logits"]]
    file.write_text(json.dumps(document), encoding="utf-8")
    (folder / "manifest.json").unlink()
    reference = replace(manifest.reference, sha256=sha256_of(file), size_bytes=file.stat().st_size)
    write_manifest(replace(manifest, reference=reference), folder)


def test_without_tensorrt_another_engine_serves_and_says_why(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, H100_ROW))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    repository = tmp_path / "repository"
    shutil.copytree(writer.repository / MODEL, repository / MODEL)
    give_plan(repository / MODEL / "1", "runtime", beside=True)
    with (
        serving(config_of(repository, tmp_path / "state", **SMALL)) as address,
        Client(address) as client,
    ):
        engine = client.get_model(MODEL).engine
    assert engine is not None
    assert engine.backend == "openvino"
    [reason] = engine.passed_over
    assert reason.startswith("tensorrt:sm90: runtime: it needs tensorrt 11.4.0.106, here is ")
    assert "'enginehouse[tensorrt]'" in reason


def test_what_rtx_compiled_at_warm_up_is_not_compiled_again(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(0, "Double GPU", "sm89", 24 << 30)
    runtimes = (Runtime("tensorrt-rtx", VERSION), Runtime("cuda-core", "1.2.2"))
    machine = replace(GPU_MACHINE, gpus=(gpu,), runtimes=runtimes)
    loads: dict[str, Callable[[Path], LoadedClassifier | LoadedDecoder]] = {
        MODEL: lambda folder: load_classifier(
            folder, LoadSettings(1, max_tokens=32, machine=machine, state_dir=tmp_path / "state")
        ),
        WRITER: lambda folder: load_decoder(
            folder, DecoderSettings(1, max_running=2, machine=machine, state_dir=tmp_path / "state")
        ),
    }
    for model, load in loads.items():
        folder = tmp_path / model / "1"
        shutil.copytree(writer.repository / model / "1", folder)
        manifest = give_plan(folder, "runtime", flavour="tensorrt-rtx")
        num_compiled = []
        for _ in range(2):
            module = install(monkeypatch, flavour="tensorrt-rtx", compute_capability=(8, 9))
            load(folder).engine.close()
            num_compiled.append(len(module.engines[0].compiled))
            assert not module.faults
        assert num_compiled[0] > 0
        assert num_compiled[1] == 0
        [built] = manifest.decoders if model == WRITER else manifest.engines
        digest = built.files[0].sha256
        assert (tmp_path / "state/kernels" / digest / "Double-GPU-sm89.kernels").exists()
