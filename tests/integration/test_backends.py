"""One version with engines of two runtimes, served by each, and by what is left of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse_builder.manifest import read_manifest, write_manifest
from enginehouse_client import Client, Model
from tests.conftest import Checkpoint
from tests.fixtures.metrics import metrics_of, sum_of
from tests.fixtures.plans import engine_of, plan_of
from tests.fixtures.server import ServerProcess, enginehouse

from .conftest import MODEL

TEXT = "Shares fell 12.5% on Monday"


@pytest.fixture(scope="module")
def both(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one version that has an engine of either runtime."""
    folder = tmp_path_factory.mktemp("repository")
    found = enginehouse(
        *("build", "--model", checkpoint("bert"), "--name", MODEL, "--max-tokens", "24"),
        *("--target", "openvino", "--target", "onnxruntime"),
        *("--repository", folder, "--cache-dir", tmp_path_factory.mktemp("cache")),
    )
    assert found.returncode == 0, found.stderr
    return folder


def _served(repository: Path, *flags: str) -> tuple[Model, list[float], str]:
    """The model, the scores of a text, and what the server logged."""
    with ServerProcess(repository, *flags) as server, Client(server.address) as client:
        [result] = client.classify(MODEL, TEXT).results
        scores = [label.score for label in sorted(result.labels, key=lambda label: label.index)]
        return client.get_model(MODEL), scores, server.log


def test_each_runtime_serves_where_it_is_required_and_answers_alike(both: Path) -> None:
    found = {b: _served(both, "--require", b) for b in ("openvino", "onnxruntime")}
    for backend, (model, _, log) in found.items():
        assert model.engine is not None
        assert (model.engine.backend, model.engine.passed_over) == (backend, ())
        assert f"{backend} runs it, which is required" in log
    assert found["openvino"][1] == pytest.approx(found["onnxruntime"][1], abs=1e-4)


def test_the_better_runtime_serves_where_none_is_required(both: Path) -> None:
    model, _, log = _served(both)
    assert model.engine is not None
    assert model.engine.backend == "openvino"
    assert "openvino runs it, the best of its 2 engines; the others are onnxruntime" in log


def test_an_engine_that_is_not_as_certified_is_passed_over(both: Path, tmp_path: Path) -> None:
    shutil.copytree(both, tmp_path, dirs_exist_ok=True)
    file = tmp_path / MODEL / "1" / "manifest.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    for probe in document["engines"][0]["probes"]:
        probe["logits"] = [x + 100 for x in probe["logits"]]
    file.write_text(json.dumps(document), encoding="utf-8")
    model, _, log = _served(tmp_path)
    assert model.engine is not None
    assert model.engine.backend == "onnxruntime"
    [reason] = model.engine.passed_over
    assert reason.startswith("openvino: ")
    assert "away from those it was certified with" in reason
    assert "the engine of openvino is passed over" in log
    refused = enginehouse(
        *("serve", "--repository", tmp_path, "--listen", "127.0.0.1:0"),
        *("--http-listen", "127.0.0.1:0", "--require", "openvino"),
    )
    assert refused.returncode == 4
    assert "--require openvino cannot be kept" in refused.stderr
    assert "away from those it was certified with" in refused.stderr


def test_a_plan_that_cannot_run_here_is_passed_over_without_being_read(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # whatever this machine has
    shutil.copytree(both, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / MODEL / "1"
    manifest = read_manifest(folder)
    plan = engine_of("tensorrt", plan_of())  # its file is not even there
    write_manifest(replace(manifest, engines=(plan, *manifest.engines)), folder)
    with ServerProcess(tmp_path, "--build-missing") as server, Client(server.address) as client:
        engine = client.get_model(MODEL).engine
        figures = metrics_of(server)
        log = server.log
    assert engine is not None
    assert engine.backend == "openvino"
    [reason] = engine.passed_over
    assert reason.startswith("tensorrt:sm90: GPU: it needs an NVIDIA GPU of sm90, here is none: ")
    assert "--target openvino=fp32" in reason
    assert "no engine is missing that would serve better on this machine" in log
    served_by = {"backend": "openvino", "precision": "fp32", "device": engine.device}
    assert sum_of(figures, "enginehouse_model_engine", model=MODEL, **served_by) == 1
    refused = enginehouse(
        *("serve", "--repository", tmp_path, "--listen", "127.0.0.1:0"),
        *("--http-listen", "127.0.0.1:0", "--require", "tensorrt"),
    )
    assert refused.returncode == 4
    assert "--require tensorrt cannot be kept: GPU: it needs" in refused.stderr


def test_a_runtime_that_a_model_has_no_engine_of_is_refused(repository: Path) -> None:
    refused = enginehouse(
        *("serve", "--repository", repository, "--listen", "127.0.0.1:0"),
        *("--http-listen", "127.0.0.1:0", "--require", "onnxruntime"),
    )
    assert refused.returncode == 4
    assert "has no engine of onnxruntime" in refused.stderr
    assert "--target onnxruntime" in refused.stderr
    assert "Traceback" not in refused.stderr
