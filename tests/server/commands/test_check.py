import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from enginehouse_server.commands.check import check
from enginehouse_server.engine.machine import Machine
from enginehouse_server.engine.runtimes import Runtime
from enginehouse_server.repository import machine_to_json, read_machine
from tests.fixtures.plans import GPU_MACHINE, engine_of, plan_of, publish, with_runtimes

OPENVINO = Runtime("openvino", "2026.4.1")


def _file(folder: Path, machine: Machine = GPU_MACHINE) -> Path:
    file = folder / "machine.json"
    file.write_text(machine_to_json(machine), encoding="utf-8")
    return file


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(check, [str(a) for a in arguments])


def _documents(*arguments: object) -> dict[str, Any]:
    result = _run(*arguments, "--json")
    return {document["model"]: document for document in json.loads(result.stdout)}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Five models, each of another answer for one machine with an H100 and TensorRT 11.4."""
    repository = tmp_path / "repository"
    publish(repository, "fitting", engine_of("tensorrt", plan_of()))
    publish(repository, "other-gpu", engine_of("tensorrt", plan_of("sm80")))
    publish(repository, "other-version", engine_of("tensorrt", plan_of(version="11.3.0.99")))
    folder = publish(repository, "truncated", engine_of("tensorrt", plan_of()))
    plan = folder / "engines/tensorrt"
    plan.write_bytes(plan.read_bytes()[:5])
    publish(repository, "without", engine_of("openvino"))
    return repository


def test_five_models_get_five_answers_each_with_its_remedy(mixed: Path, tmp_path: Path) -> None:
    result = _run(mixed, "--machine", _file(tmp_path))
    assert result.exit_code == 4
    answers, name = dict[str, str](), ""
    for line in result.stdout.splitlines():
        if not line.startswith(" "):
            name = line.split()[0]
        answers[name] = answers.get(name, "") + line + "\n"
    assert "runs, and serves" in answers["fitting"]
    assert "remedy" not in answers["fitting"]
    for name, *expected in (
        (
            *("other-gpu", "compute capability: it needs sm80, here is sm90 (NVIDIA H100"),
            f"build --rebuild --name other-gpu --target tensorrt:sm90=fp32 --repository {mixed}",
        ),
        (
            *("other-version", "TensorRT version: it needs tensorrt 11.3.0.99, here is 11.4.0.106"),
            f"--rebuild --name other-version --target tensorrt:sm90=fp32 --repository {mixed}",
        ),
        (
            *("truncated", "it needs engines/tensorrt of 27 bytes, here is 5 bytes"),
            f"build --rebuild --name truncated --target tensorrt:sm90=fp32 --repository {mixed}",
        ),
        (
            *("without", "runtime: it needs openvino 2026.4.1, here is not installed"),
            *("pip install 'enginehouse[server]'", "better", "--target tensorrt:sm90=fp32"),
        ),
    ):
        assert "serves" in answers[name]
        for part in ("does not run", "nothing: no engine runs on this machine", *expected):
            assert part in answers[name], name


def test_where_every_model_has_an_engine_that_runs_the_code_is_0(
    mixed: Path, tmp_path: Path
) -> None:
    machine = _file(tmp_path)
    assert _run(mixed / "fitting", "--machine", machine).exit_code == 0
    assert _run(mixed / "fitting/1", "--machine", machine).exit_code == 0
    assert _run(mixed / "without", "--machine", machine).exit_code == 4
    able = _file(tmp_path, with_runtimes(GPU_MACHINE, OPENVINO))
    assert _run(mixed / "without", "--machine", able).exit_code == 0


def test_a_damaged_plan_is_found_by_its_hash_unless_files_are_not_looked_at(
    mixed: Path, tmp_path: Path
) -> None:
    arguments = (mixed / "fitting", "--machine", _file(tmp_path))
    plan = mixed / "fitting/1/engines/tensorrt"
    plan.write_bytes(plan.read_bytes().swapcase())
    [engine] = _documents(*arguments)["fitting"]["engines"]
    assert "the file was changed" in engine["reason"]
    assert _run(*arguments).exit_code == 4
    assert _run(*arguments, "--no-verify").exit_code == 0
    plan.unlink()
    [engine] = _documents(*arguments)["fitting"]["engines"]
    assert "cannot be read" in engine["verdict"]["found"]


def test_the_engine_that_serves_is_the_best_that_runs(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    engines = (engine_of("openvino"), engine_of("tensorrt", plan_of("sm80")))
    publish(repository, "topics", *engines)
    machine = with_runtimes(GPU_MACHINE, *GPU_MACHINE.runtimes, OPENVINO)
    found = _documents(repository, "--machine", _file(tmp_path, machine))["topics"]
    assert found["takes"] == "openvino"
    assert [engine["target"] for engine in found["engines"]] == ["tensorrt:sm80", "openvino"]
    assert found["better"].endswith(
        f"--name topics --target tensorrt:sm90=fp32 --repository {repository}"
    )


def test_the_newest_version_is_checked_and_every_one_where_that_is_asked_for(
    tmp_path: Path,
) -> None:
    repository = tmp_path / "repository"
    publish(repository, "topics", engine_of("tensorrt", plan_of("sm80")), version=9)
    publish(repository, "topics", engine_of("tensorrt", plan_of()), version=10)
    arguments = (repository, "--machine", _file(tmp_path))
    assert _run(*arguments).exit_code == 0
    assert _documents(*arguments)["topics"]["version"] == 10
    result = _run(*arguments, "--all")
    assert result.exit_code == 4
    assert result.stdout.index("version 10") < result.stdout.index("version 9")


@pytest.mark.parametrize("fault", ["manifest", "tokenizer", "no version"])
def test_what_cannot_be_served_at_all_is_told_with_a_remedy(tmp_path: Path, fault: str) -> None:
    repository = tmp_path / "repository"
    folder = publish(repository, "topics", engine_of("tensorrt", plan_of()))
    if fault == "manifest":
        (folder / "manifest.json").write_text("{")
    elif fault == "tokenizer":
        (folder / "tokenizer/tokenizer.json").write_text("{")
    else:
        folder.rename(tmp_path / "elsewhere")
    result = _run(repository, "--machine", _file(tmp_path))
    assert result.exit_code == 4
    assert "cannot be served" in result.stdout
    assert "enginehouse build --name topics" in result.stdout
    expected = {"manifest": "manifest.json", "tokenizer": "tokenizer.json: 1 bytes"}
    assert expected.get(fault, "it has no version") in result.stdout


def test_without_a_file_it_is_this_machine_that_is_asked(tmp_path: Path) -> None:
    publish(tmp_path, "topics", engine_of("openvino", runtime_version="1.0"))
    found = _run(tmp_path)
    assert found.exit_code == 0, found.output
    assert "runs, and serves" in found.stdout


@pytest.mark.parametrize("content", [None, "{", "[]", '{"system": 3}'])
def test_a_file_that_is_no_machine_is_wrong_usage(
    mixed: Path, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "other.json"
    if content is not None:
        file.write_text(content)
    result = _run(mixed, "--machine", file)
    assert result.exit_code == 2
    assert str(file) in result.stderr
    assert "enginehouse machine --json" in result.stderr


def test_a_path_that_holds_no_model_is_wrong_usage(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        result = _run(path, "--machine", _file(tmp_path))
        assert result.exit_code == 2
        assert str(path) in result.stderr


def test_a_machine_of_a_file_is_the_one_that_was_written(tmp_path: Path) -> None:
    machine = dataclasses.replace(GPU_MACHINE, processor="ein Prozessor µ")
    assert read_machine(_file(tmp_path, machine)) == machine
