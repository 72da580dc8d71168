"""The whole product on a GPU: built there, checked, served, asked."""

import json
from pathlib import Path

import pytest

from enginehouse_client import Client, Sampling, Stopping
from tests.conftest import Checkpoint
from tests.fixtures.server import ServerProcess, enginehouse
from tests.gpu.conftest import machine

NOTHING_RUNS = 4
BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
pytestmark = pytest.mark.gpu


def _target(backend: str) -> str:
    gpu = machine().gpu
    assert gpu is not None
    return backend if backend == "onnxruntime" else f"{backend}:{gpu.compute_capability}"


def _build(repository: Path, cache: Path, checkpoint: Path, name: str, target: str) -> None:
    found = enginehouse(
        *("build", "--model", checkpoint, "--name", name, "--target", target),
        *("--repository", repository, "--cache-dir", cache),
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_classifier_is_built_certified_and_served_there(
    backend: str, precision: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    target = f"{_target(backend)}={precision}"
    _build(tmp_path / "repository", tmp_path / "cache", checkpoint("bert"), "tiny", target)
    gpu = machine().gpu
    assert gpu is not None
    with (
        ServerProcess(tmp_path / "repository", "--require", backend) as server,
        Client(server.address) as client,
    ):
        engine = client.get_model("tiny").engine
        assert engine is not None
        assert engine.device == gpu.name
        found = client.classify("tiny", ["one", "two three", "four " * 20])
        assert len(found.results) == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_decoder_is_built_certified_and_served_there(backend: str, tmp_path: Path) -> None:
    from tests.fixtures.decoders import make_decoder

    checkpoint = make_decoder("llama", tmp_path / "original")
    _build(
        *(tmp_path / "repository", tmp_path / "cache", checkpoint, "writer"),
        f"{_target(backend)}=bf16",
    )
    with (
        ServerProcess(tmp_path / "repository", "--require", backend) as server,
        Client(server.address) as client,
    ):
        long = Stopping(max_new_tokens=20, ignore_eos=True)
        greedy = Sampling(temperature=0.0)
        one, other = (
            client.generate("writer", [5, 6, 7], sampling=greedy, stopping=long) for _ in range(2)
        )
        assert one.sequences[0].text == other.sequences[0].text
        pieces = list(client.generate_stream("writer", [9, 8], sampling=greedy, stopping=long))
        assert pieces[-1].sequences[0].finish_reason is not None


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_what_cannot_run_without_the_gpu_is_refused_with_what_to_do(
    backend: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    target = f"{_target(backend)}=fp16"
    _build(tmp_path / "repository", tmp_path / "cache", checkpoint("bert"), "tiny", target)
    there = enginehouse("check", tmp_path / "repository", "--json")
    assert there.returncode == 0, there.stdout
    hidden = enginehouse("check", tmp_path / "repository", "--json", CUDA_VISIBLE_DEVICES="")
    assert hidden.returncode == NOTHING_RUNS
    assert "CUDA_VISIBLE_DEVICES" in json.dumps(json.loads(hidden.stdout))
    served = enginehouse("serve", "--repository", tmp_path / "repository", CUDA_VISIBLE_DEVICES="")
    assert served.returncode == NOTHING_RUNS, served.stderr


def test_onnxruntime_serves_on_the_processor_where_the_gpu_is_hidden(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    _build(tmp_path / "repository", tmp_path / "cache", checkpoint("bert"), "tiny", "onnxruntime")
    found = enginehouse(
        *("check", tmp_path / "repository", "--json"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert found.returncode == 0, found.stdout
