"""cuda-core's own code on a stand-in of the driver: all that tests of a GPU ask, but for kernels.

The stand-in is compiled here; without a compiler, what is left are the names that test_bindings.py
checks.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "fixtures/cuda_driver/driver.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler, so no stand-in of the driver"),
    pytest.mark.skipif(sys.platform != "linux", reason="the stand-in is for Linux"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in."""
    folder = tmp_path_factory.mktemp("driver")
    target = folder / "libcuda.so.1"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", target, SOURCE], check=True)
    return folder


def run(driver: Path, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    library_path = os.pathsep.join(filter(None, (str(driver), os.environ.get("LD_LIBRARY_PATH"))))
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": library_path, **variables},
    )


def test_all_that_needs_no_kernel_holds_on_the_stand_in(driver: Path) -> None:
    """The tests of a real device, each on the real binding; waits are too short to be measured."""
    left_out = "not processor and not lost"
    found = run(
        *(driver, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"),
        *("tests/gpu/test_bindings.py", "-k", f"cuda-core and {left_out}"),
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "8 passed" in found.stdout


_LOSE = """
import os, pathlib
from enginehouse_server.engine.cuda import open_device
from enginehouse_server.errors import DeviceLostError

device = open_device("cuda-core")
stream, event, buffer = device.stream(), device.event(), device.allocate(256)
pinned = device.allocate_pinned(256)
pathlib.Path(os.environ["STANDIN_LOST"]).touch()
calls = {
    "check": device.check,
    "allocate": lambda: device.allocate(256),
    "copy": lambda: device.copy_to_device(buffer.address, pinned.address, 256, stream),
    "fill": lambda: device.fill(buffer.address, 1, 256, stream),
    "record": lambda: stream.record(event),
    "wait": event.synchronize,
    "stream": device.stream,
    "capture": lambda: device.capture(stream, lambda: None),
}
for name, call in calls.items():
    try:
        call()
    except DeviceLostError as error:
        assert "CUDA_ERROR_ILLEGAL_ADDRESS" in str(error), error
        print(name)
device.close()
"""


def test_every_call_on_a_lost_device_says_that_it_is_lost(driver: Path, tmp_path: Path) -> None:
    found = run(driver, "-c", _LOSE, STANDIN_LOST=str(tmp_path / "lost"))
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [
        *("check", "allocate", "copy", "fill", "record", "wait", "stream", "capture"),
    ]


def test_a_device_that_is_not_there_is_refused_by_number(driver: Path) -> None:
    code = "from enginehouse_server.engine.cuda import open_device; open_device('cuda-core', 3)"
    found = run(driver, "-c", code)
    assert "has 1 CUDA devices, and device 3 is asked for" in found.stderr
