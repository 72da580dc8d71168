import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from enginehouse_builder.inspect.command import inspect
from enginehouse_builder.manifest import FILE_NAME
from tests.builder.conftest import DECODER, MODEL, Built, BuiltDecoder


def _inspect(*arguments: str | Path) -> Result:
    return CliRunner().invoke(inspect, [str(argument) for argument in arguments])


@pytest.fixture
def version(built: Built, tmp_path: Path) -> Path:
    """A version to spoil."""
    return Path(shutil.copytree(built("fp32"), tmp_path / "repository" / MODEL / "1"))


def test_a_version_is_shown_with_its_proof(version: Path) -> None:
    found = _inspect(version)
    assert found.exit_code == 0
    for text in (
        f"{MODEL} version 1",
        "labels",
        "transformers",
        "decided alike",
        "batch 1",
        "probe",
    ):
        assert text in found.stdout


def test_a_decoder_is_shown_with_its_geometry_proof_and_times(built_decoder: BuiltDecoder) -> None:
    found = _inspect(built_decoder("int8"))
    assert found.exit_code == 0
    for text in (
        f"{DECODER} version",
        "96 tokens a sequence, 4 sequences at once, 512 new tokens a step",
        "2 layers: 4 heads of 8 on 2 of keys",
        "cache in u8",
        "paged: by an operator of the runtime",
        "greedy tokens are the original's",
        "perplexity",
        "goes on with",
        "ms: prefill tokens of one prompt",
        "ms: decode sequences, a token each",
    ):
        assert text in found.stdout
    document = json.loads(_inspect(built_decoder("int8"), "--json").stdout)
    [engine] = document["manifest"]["decoders"]
    assert engine["step_times"]
    assert engine["certificate"]["mean_kl"] > 0


def test_a_repository_of_both_tasks_is_listed(
    built: Built, built_decoder: BuiltDecoder, tmp_path: Path
) -> None:
    decoder = built_decoder("fp32")
    for name, folder in ((MODEL, built("fp32")), (DECODER, decoder)):
        shutil.copytree(folder, tmp_path / name / folder.name)
    found = _inspect(tmp_path)
    rows = [line.split() for line in found.stdout.splitlines()][1:]
    assert [row[:5] for row in rows] == [
        [MODEL, "1", "classify", "openvino", "fp32"],
        [DECODER, decoder.name, "generate", "openvino", "fp32"],
    ]


def test_a_model_shows_its_newest_version(version: Path) -> None:
    shutil.copytree(version, version.with_name("10"))
    shutil.copytree(version, version.with_name("9"))
    found = _inspect(version.parent, "--json")
    assert json.loads(found.stdout)["folder"] == str(version.with_name("10"))


def test_a_repository_is_listed_with_what_cannot_be_read(version: Path) -> None:
    (version.with_name("2")).mkdir()
    found = _inspect(version.parent.parent)
    assert found.exit_code == 0
    rows = [line.split() for line in found.stdout.splitlines()]
    assert rows[0][:2] == ["model", "version"]
    assert [row[:2] for row in rows[1:3]] == [[MODEL, "2"], [MODEL, "1"]]
    assert "is not a published version" in found.stdout


def test_json_is_the_manifest(version: Path) -> None:
    document = json.loads(_inspect(version, "--json").stdout)
    stored = json.loads((version / FILE_NAME).read_text())
    del stored["manifest_version"]
    assert document == {"folder": str(version), "manifest": stored}


def test_json_of_a_repository_is_a_list(version: Path) -> None:
    [document] = json.loads(_inspect(version.parent.parent, "--json").stdout)
    assert document["manifest"]["model"] == MODEL


def test_a_whole_version_verifies(version: Path) -> None:
    found = _inspect(version, "--verify")
    assert found.exit_code == 0
    assert "files are as published" in found.stdout


@pytest.mark.parametrize("damage", ["change", "cut", "remove", "add"])
def test_a_damaged_version_does_not_verify(version: Path, damage: str) -> None:
    file = version / "tokenizer" / "tokenizer.json"
    content = file.read_bytes()
    file.unlink()
    if damage == "change":
        file.write_bytes(content.replace(b"a", b"b", 1))
    elif damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "add":
        file.write_bytes(content)
        (version / "extra").touch()
    found = _inspect(version, "--verify")
    assert found.exit_code == 1
    assert ("extra" if damage == "add" else "tokenizer/tokenizer.json") in found.stderr


@pytest.mark.parametrize("where", ["missing", "file", "empty", "broken"])
def test_a_wrong_path_is_refused(tmp_path: Path, where: str) -> None:
    path = tmp_path / where
    if where == "file":
        path.touch()
    elif where != "missing":
        path.mkdir()
    if where == "broken":
        (path / FILE_NAME).write_text("{")
    found = _inspect(path)
    assert found.exit_code == 2
    assert str(path) in found.stderr
    assert "Traceback" not in found.output
