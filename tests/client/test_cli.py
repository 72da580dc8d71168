import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from enginehouse_client import cli, commands
from tests.client.fake_server import FakeServer, model


def run(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, list(args), input=stdin)


def entry_points_of(monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Makes `commands`, name and target, all the entry points that there are."""
    found = metadata.EntryPoints(
        metadata.EntryPoint(name, target, "enginehouse.commands")
        for name, target in commands.items()
    )
    monkeypatch.setattr(metadata, "entry_points", found.select)


def test_help_lists_every_command_with_its_purpose() -> None:
    output = run("--help").output
    for entry in metadata.entry_points(group="enginehouse.commands"):
        line = next(line for line in output.splitlines() if line.split()[:1] == [entry.name])
        assert len(line.split()) > 2


def test_only_commands_that_there_are_are_known() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(cli._KNOWN) == set(project["entry-points"]["enginehouse.commands"])


def test_version() -> None:
    assert run("--version").output == f"enginehouse {metadata.version('enginehouse')}\n"


def test_base_commands_import_nothing_of_an_extra() -> None:
    code = (
        "import sys; from enginehouse_client.cli import main; import enginehouse_client\n"
        "import enginehouse_client.commands.classify\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "extras = {'numpy', 'torch', 'openvino', 'jinja2', 'rich', 'matplotlib',\n"
        "    'enginehouse_server', 'enginehouse_builder', 'enginehouse_client.loadtest'}\n"
        "sys.exit(', '.join(extras & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("command", "extra"), [("serve", "server"), ("build", "builder")])
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, command: str, extra: str
) -> None:
    entry_points_of(monkeypatch, **{command: "no_such_module_of_an_extra:main"})
    result = run(command)
    assert result.exit_code == 2
    assert (
        f"enginehouse {command} needs the extra '{extra}': pip install 'enginehouse[{extra}]'"
        in result.output
    )


def test_an_extra_that_is_missed_while_running_is_named_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @click.command()
    def late() -> None:
        raise ModuleNotFoundError("No module named 'openvino'", name="openvino")

    monkeypatch.setattr(commands, "late", late, raising=False)
    entry_points_of(monkeypatch, serve="enginehouse_client.commands:late")
    result = run("serve")
    assert result.exit_code == 2
    assert "enginehouse[server]" in result.output


def test_a_module_of_ours_that_is_missing_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points_of(monkeypatch, serve="enginehouse_server.no_such_module:main")
    assert isinstance(run("serve").exception, ModuleNotFoundError)


@pytest.mark.parametrize("command", ["serve", "build"])
def test_both_onnxruntimes_are_refused(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: name)
    entry_points_of(monkeypatch, **{command: "not_even_imported:main"})
    result = run(command)
    assert result.exit_code == 2
    assert "onnxruntime-gpu" in result.output
    assert "uninstall both" in result.output


def test_an_unknown_command_is_wrong_usage() -> None:
    assert run("polish").exit_code == 2


def test_classify_shows_labels_scores_and_timing(server: FakeServer) -> None:
    result = run("classify", "one two three", "--target", server.target)
    assert result.exit_code == 0, result.output
    first, second, timing = result.output.splitlines()
    assert first.split()[:2] == ["sports", "0.7500"]
    assert second.split()[:4] == ["one", "two", "three", "0.2500"]
    assert first.index("0.7500") == second.index("0.2500")
    for word in ("topics/1", "5 tokens", "compute 1.50", "batch of 4"):
        assert word in timing


def test_classify_passes_its_options_on(server: FakeServer) -> None:
    result = run(
        *("classify", "a", "--target", server.target, "--model", "topics", "--version", "1"),
        *("--pair", "b", "--top-k", "1", "--activation", "none", "--truncate"),
    )
    assert result.exit_code == 0, result.output
    sent = server.requests[0]
    assert (sent.inputs[0].text, sent.inputs[0].text_pair) == ("a", "b")
    assert (sent.version, sent.top_k, sent.activation, sent.truncate) == (1, 1, 3, True)


def test_classify_reads_a_file_in_requests_of_the_model_s_size(server: FakeServer) -> None:
    lines = "".join(f"line {i}\n\n" for i in range(10))
    result = run("classify", "--file", "-", "--target", server.target, "--json", stdin=lines)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.output.splitlines()]
    assert [row["text"] for row in rows] == [f"line {i}" for i in range(10)]
    assert rows[0]["labels"][0] == {"label": "sports", "score": 0.75, "index": 1}
    assert [len(request.inputs) for request in server.requests] == [4, 4, 2]


def test_classify_asks_for_a_model_where_several_serve(server: FakeServer) -> None:
    server.models.append(model("mood"))
    result = run("classify", "a", "--target", server.target)
    assert (result.exit_code, "mood, topics" in result.output) == (1, True)
    assert run("classify", "a", "--target", server.target, "--model", "mood").exit_code == 0


def test_classify_tells_errors_on_stderr(server: FakeServer) -> None:
    result = run("classify", "a", "--target", server.target, "--model", "other")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "no model 'other'" in result.stderr
    assert "Traceback" not in result.stderr


def test_classify_without_a_text_is_wrong_usage(server: FakeServer) -> None:
    assert run("classify", "--target", server.target).exit_code == 2


def test_classify_says_of_a_file_that_it_is_not_utf8(server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes(b"caf\xe9\n")
    result = run("classify", "--file", str(file), "--target", server.target)
    assert (result.exit_code, "not text in UTF-8" in result.stderr) == (2, True)
    assert not server.requests


def test_classify_asks_which_of_several_models_is_meant(server: FakeServer) -> None:
    server.models = [model("topics"), model("tones")]
    result = run("classify", "a", "--target", server.target)
    assert (result.exit_code, "choose one by --model: tones, topics" in result.stderr) == (1, True)


def test_classify_names_a_server_that_does_not_answer() -> None:
    result = run("classify", "a", "--target", "127.0.0.1:1")
    assert (result.exit_code, "127.0.0.1:1" in result.stderr) == (1, True)
