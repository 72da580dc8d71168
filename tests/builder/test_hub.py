import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

from enginehouse_builder.manifest import Manifest, read_manifest
from tests.conftest import Checkpoint
from tests.fixtures.hub import Hub, HubModel, running_hub


@dataclass(frozen=True)
class _Outcome:
    error: str
    message: str
    folder: Path
    commit: str


# huggingface_hub reads its settings when it is imported, so each fetch is a process.
_PROGRAM = """
import json, sys
from enginehouse_builder.errors import BuildError
from enginehouse_builder.hub import fetch
try:
    folder, commit = fetch(sys.argv[1], sys.argv[2] or None, with_code=False)
    found = {"folder": str(folder), "commit": commit}
except BuildError as error:
    found = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(found))
"""


def _fetch(hub: Hub, home: Path, name: str, revision: str = "", **variables: str) -> _Outcome:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        **variables,
    }
    command = [sys.executable, "-c", _PROGRAM, name, revision]
    ran = subprocess.run(
        command, env=environment, check=True, timeout=120, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(ran.stdout)
    return _Outcome(
        found.get("error", ""),
        found.get("message", ""),
        Path(found.get("folder", "/nonexistent")),
        found.get("commit", ""),
    )


_FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 400,
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub(topics=HubModel(_FILES)) as running:
        yield running


def test_hub_model_is_fetched_at_a_revision_and_kept(hub: Hub, tmp_path: Path) -> None:
    model = hub.models["tests/topics"]
    model.refs = ("main", "v1")
    model.files = {**model.files, "onnx/model.json": b"{}", "code.py": b"1/0", "weights.bin": b"x"}
    found = _fetch(hub, tmp_path, "tests/topics", "v1")
    assert found.error == ""
    assert found.commit == model.commit
    assert set(os.listdir(found.folder)) == set(_FILES)
    asked = len(model.asked)
    again = _fetch(hub, tmp_path, "tests/topics", "v1")
    assert again.folder == found.folder
    assert len(model.asked) == asked


def _build(hub: Hub, folder: Path, *arguments: str) -> Manifest:
    """What `enginehouse build` publishes of a model of the stand-in."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "ENGINEHOUSE_REPOSITORY": str(folder / "repository"),
        "ENGINEHOUSE_CACHE": str(folder / "cache"),
    }
    program = "from enginehouse_client.cli import main; main()"
    command = [sys.executable, "-c", program, "build", "--max-tokens", "16", *arguments]
    ran = subprocess.run(
        command, env=environment, check=False, timeout=240, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return read_manifest(Path(ran.stdout.strip()))


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
def test_a_hub_model_is_built_at_a_revision(
    hub: Hub, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    files = _files(checkpoint("bert"))
    hub.models["tests/Tiny_Bert"] = HubModel(files, commit="2" * 40, refs=("v1",))
    manifest = _build(hub, tmp_path, "--model", "tests/Tiny_Bert", "--revision", "v1")
    assert manifest.model == "tiny_bert"
    assert (manifest.source.id, manifest.source.revision) == ("tests/Tiny_Bert", "2" * 40)
    weights = hashlib.sha256(files["model.safetensors"]).hexdigest()
    listing = f"model.safetensors {weights}\n"
    assert manifest.source.sha256 == hashlib.sha256(listing.encode()).hexdigest()


_OWN_CODE = b"""
from transformers import BertConfig, BertForSequenceClassification


class OwnConfig(BertConfig):
    model_type = "own"


class OwnForSequenceClassification(BertForSequenceClassification):
    config_class = OwnConfig

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        found = super().forward(input_ids, attention_mask, token_type_ids)
        found.logits = found.logits * 2 + 1
        return found
"""


@pytest.mark.slow
def test_a_models_own_code_runs_where_it_is_trusted(
    hub: Hub, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    files = _files(checkpoint("bert"))
    config = json.loads(files["config.json"]) | {
        "model_type": "own",
        "architectures": ["OwnForSequenceClassification"],
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
        },
    }
    files |= {"config.json": json.dumps(config).encode(), "modeling_own.py": _OWN_CODE}
    model = tmp_path / "own"
    model.mkdir()
    for name, content in files.items():
        (model / name).write_bytes(content)
    manifest = _build(hub, tmp_path, "--model", str(model), "--trust-remote-code")
    assert manifest.source.architecture == "OwnForSequenceClassification"
    probe = manifest.engines[0].probes[0]
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint("bert"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint("bert"))
    inputs = tokenizer(
        probe.text, probe.text_pair, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        expected = plain.eval()(**inputs).logits[0] * 2 + 1
    assert probe.logits == pytest.approx(expected.tolist(), abs=1e-4)


def test_unknown_hub_model_is_named(hub: Hub, tmp_path: Path) -> None:
    found = _fetch(hub, tmp_path, "tests/absent")
    assert found.error == "ResolveError"
    assert "there is no model tests/absent" in found.message


def test_unknown_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    found = _fetch(hub, tmp_path, "tests/topics", "v9")
    assert found.error == "ResolveError"
    assert "tests/topics has no revision 'v9'" in found.message


def test_gated_model_says_where_to_ask(hub: Hub, tmp_path: Path) -> None:
    hub.models["tests/topics"].gated = True
    found = _fetch(hub, tmp_path, "tests/topics")
    assert found.error == "ResolveError"
    assert "is gated: accept its terms" in found.message
    assert "HF_TOKEN" in found.message


def test_pickled_hub_model_is_refused_by_name(hub: Hub, tmp_path: Path) -> None:
    model = hub.models["tests/topics"]
    names = {"model.safetensors": "pytorch_model.bin"}
    model.files = {names.get(name, name): content for name, content in model.files.items()}
    found = _fetch(hub, tmp_path, "tests/topics")
    assert found.error == "ResolveError"
    assert "pickle (pytorch_model.bin)" in found.message
    assert "pytorch_model.bin" not in model.asked


def test_download_that_breaks_off_once_is_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    model = hub.models["tests/topics"]
    model.cuts["model.safetensors"] = 1
    found = _fetch(hub, tmp_path, "tests/topics")
    assert found.error == ""
    weights = found.folder / "model.safetensors"
    assert weights.read_bytes() == model.files["model.safetensors"]


@pytest.mark.slow
def test_broken_download_fails_and_is_never_taken_for_whole(hub: Hub, tmp_path: Path) -> None:
    model = hub.models["tests/topics"]
    model.cuts["model.safetensors"] = -1
    found = _fetch(hub, tmp_path, "tests/topics")
    assert found.error == "ResolveError"
    assert "could not be fetched whole" in found.message
    offline = _fetch(hub, tmp_path, "tests/topics", HF_HUB_OFFLINE="1")
    assert offline.error == "ResolveError"
    assert "not in the cache, at least not all of it" in offline.message
    del model.cuts["model.safetensors"]
    assert _fetch(hub, tmp_path, "tests/topics").error == ""


def test_hub_that_cannot_be_reached_is_named(hub: Hub, tmp_path: Path) -> None:
    nowhere = Hub("http://127.0.0.1:9", {})
    found = _fetch(nowhere, tmp_path, "tests/topics")
    assert found.error == "ResolveError"
    assert "http://127.0.0.1:9 cannot be reached" in found.message
