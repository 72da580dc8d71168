import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from enginehouse_builder.cli import build, demo
from enginehouse_builder.ending import ending_cleanly
from enginehouse_builder.errors import BuildError, SpecError
from tests.conftest import Checkpoint


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "ENGINEHOUSE_REPOSITORY": str(tmp_path / "repository"),
        "ENGINEHOUSE_CACHE": str(tmp_path / "cache"),
    }


def _start(environment: dict[str, str], *arguments: str | Path) -> subprocess.Popen[str]:
    program = "from enginehouse_client.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(environment: dict[str, str], *arguments: str | Path) -> tuple[int, str, str]:
    process = _start(environment, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("command", [build, demo])
def test_every_option_has_a_variable_and_a_meaning(command: click.Command) -> None:
    for option in command.params:
        assert isinstance(option, click.Option)
        assert option.help
        assert str(option.envvar).startswith("ENGINEHOUSE_")


def test_slots_are_the_sequences_at_once() -> None:
    for flag in ("--slots", "--max-batch"):
        assert build.make_context("build", ["--model", "x", flag, "3"]).params["max_batch"] == 3


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from enginehouse_builder.cli import build, demo; "
        "from enginehouse_builder.inspect.command import inspect; "
        "print([m for m in ('torch', 'transformers', 'numpy', 'openvino', 'onnx', 'rich') "
        "if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert found.stdout.decode().strip() == "[]"


def test_a_build_prints_the_version_and_its_stages(
    checkpoint: Checkpoint, environment: dict[str, str]
) -> None:
    code, out, err = _run(
        environment, "build", "--model", checkpoint("bert"), "--name", "tiny", "--max-tokens", "16"
    )
    assert code == 0, err
    assert out == f"{environment['ENGINEHOUSE_REPOSITORY']}/tiny/1\n"
    for stage in ("resolve", "export", "certify", "measure", "publish"):
        assert f"{stage} " in err
    assert "Warning" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build"], 2, "--model"),
        (["build", "--model", "./missing"], 1, "missing"),
        (["build", "--model", "x", "--precision", "fp64"], 2, "fp64"),
        (["build", "--model", "x", "--max-tokens", "0"], 2, "x>=1"),
        (["build", "--model", "x", "--samples", "./none.txt"], 2, "none.txt"),
    ],
)
def test_a_wrong_request_ends_with_its_code_and_one_text(
    environment: dict[str, str], arguments: list[str], code: int, message: str
) -> None:
    found, out, err = _run(environment, *arguments)
    assert found == code
    assert message in err
    assert "Traceback" not in err
    assert not out


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "interrupted; nothing was published"), (signal.SIGTERM, 143, "")],
)
def test_an_interrupted_build_leaves_nothing(
    checkpoint: Checkpoint,
    environment: dict[str, str],
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    message: str,
) -> None:
    process = _start(environment, "build", "--model", checkpoint("bert"), "--name", "tiny")
    assert process.stderr
    while "export …" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert message in err
    assert "Traceback" not in err
    assert not list((tmp_path / "repository").iterdir())
    assert not list((tmp_path / "cache").glob("*/.tmp-*"))


def test_a_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, ending_cleanly("build"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch._C")
    assert ended.value.code == 2
    assert "pip install 'enginehouse[builder]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(BuildError("why"), 1), (SpecError("why"), 2), (ValueError("why"), 1)],
)
def test_an_error_ends_with_its_code(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    with pytest.raises(SystemExit) as ended, ending_cleanly("build"):
        raise error
    assert ended.value.code == code
    shown = capsys.readouterr().err
    assert "why" in shown
    assert "Traceback" not in shown


def test_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEHOUSE_DEBUG", "1")
    with pytest.raises(SystemExit), ending_cleanly("build"):
        raise BuildError("why")
    assert "Traceback" in capsys.readouterr().err


def test_bf16_is_refused_at_once_where_there_is_none() -> None:
    from enginehouse_builder.host import Host
    from enginehouse_builder.settings import check_targets
    from enginehouse_builder.targets import Target
    from enginehouse_server.engine.device import Device

    old = {"openvino": Device("2026", "old processor", has_bf16=False)}
    with pytest.raises(SpecError, match=r"old processor\) does not compute in bf16"):
        check_targets([Target("openvino", "bf16")], Host({}), old, None)


def test_options_are_taken_from_variables(tmp_path: Path) -> None:
    found = CliRunner().invoke(
        build,
        [],
        env={
            "ENGINEHOUSE_MODEL": str(tmp_path / "none"),
            "ENGINEHOUSE_PRECISION": "fp64",
        },
    )
    assert found.exit_code == 2
    assert "fp64" in found.output
