import asyncio
import logging
import os
import sys
from pathlib import Path
from time import monotonic

import pytest

from enginehouse_server.building import MissingEngine, build_engines, missing_engines
from enginehouse_server.repository import scan
from tests.fixtures.plans import GPU_MACHINE, engine_of, plan_of, publish


def _building(code: str) -> MissingEngine:
    return MissingEngine("topics", "tensorrt:sm90=fp32", (sys.executable, "-c", code))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "enginehouse_server.building")
    return caplog


def test_what_is_missing_is_what_the_gpu_could_run_better(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, "on-processor", engine_of("openvino", precision="int8"))
    publish(tmp_path, "has-a-plan", engine_of("openvino"), engine_of("tensorrt", plan_of()))
    publish(tmp_path, "has-another", engine_of("tensorrt", plan_of("sm80")))
    (publish(tmp_path, "damaged", engine_of("openvino")) / "manifest.json").write_text("{")
    found = missing_engines(scan(tmp_path), tmp_path, GPU_MACHINE)
    assert [(e.model, e.target) for e in found] == [
        ("has-another", "tensorrt:sm90=fp32"),
        ("on-processor", "tensorrt:sm90=int8"),
    ]
    place = ("--repository", str(tmp_path))
    expected = ("build", "--rebuild", "--name", "has-another", "--target", "tensorrt:sm90=fp32")
    assert found[0].command == (sys.executable, "-m", "enginehouse_client", *expected, *place)
    assert not log.messages


def test_nothing_is_built_for_a_version_that_has_a_successor(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, "topics", engine_of("openvino"), version=1)
    publish(tmp_path, "topics", engine_of("openvino"), version=2)
    old = [found for found in scan(tmp_path) if found.version == 1]
    assert missing_engines(old, tmp_path, GPU_MACHINE) == []
    assert "it has a newer version" in log.messages[0]


async def test_a_build_runs_at_low_priority_with_its_progress_in_the_log(
    log: pytest.LogCaptureFixture,
) -> None:
    # The priority is set when the process is there already: it looks until then.
    code = (
        "import os, time\n"
        "while os.getpriority(os.PRIO_PROCESS, 0) < 19: time.sleep(0.01)\n"
        "for n in range(3): print(f'compile … {n} of 3', flush=True)\n"
        "print('compiled', flush=True)"
    )
    began = monotonic()
    await asyncio.wait_for(build_engines([_building(code)]), 20)
    # Of lines of progress one a second is enough.
    assert len(log.messages) <= 4 + (monotonic() - began)
    assert log.messages[:2] == [
        "building topics for tensorrt:sm90=fp32 beside serving",
        "topics for tensorrt:sm90=fp32: compile … 0 of 3",
    ]
    assert log.messages[-2:] == [
        "topics for tensorrt:sm90=fp32: compiled",
        "topics for tensorrt:sm90=fp32 is built and published: it is served from the next start",
    ]


async def test_a_build_that_fails_is_told_and_the_next_is_made(
    log: pytest.LogCaptureFixture,
) -> None:
    failing = "import sys; print('no builder here', file=sys.stderr); sys.exit(2)"
    nowhere = MissingEngine("topics", "tensorrt:sm90=fp32", ("/nowhere/python",))
    await build_engines([_building(failing), nowhere, _building("")])
    failed = [r.getMessage() for r in log.records if r.levelno == logging.ERROR]
    assert failed[0] == (
        "topics for tensorrt:sm90=fp32 was not built (exit code 2): no builder here; what is there "
        "goes on serving"
    )
    assert "was not built (exit code -1): [Errno 2]" in failed[1]
    assert log.messages[-1].endswith("it is served from the next start")


async def test_a_build_ends_with_the_server(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(file)!r}).write_text(str(os.getpid()) + '\\n')\n"
        "time.sleep(60)"
    )
    task = asyncio.create_task(build_engines([_building(code)]))
    began = monotonic()
    while not (file.exists() and file.read_text().endswith("\n")):
        assert monotonic() - began < 20
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
    assert monotonic() - began < 20
