"""The two CUDA bindings as far as a machine without a GPU can try them: names, errors, refusals."""

# The binding's types are not pyright's.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
# pyright: reportOptionalMemberAccess=false

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from enginehouse_server.engine.cuda import obstacle_to_cuda, open_device
from enginehouse_server.engine.cuda.errors import LOST, device_error, lost_by, probe, reported
from enginehouse_server.engine.cuda.host import array_at
from enginehouse_server.errors import (
    DeviceError,
    DeviceLostError,
    PlanMismatchError,
    UnsupportedError,
)

CUDA = Path(inspect.getfile(open_device)).parent
HERE = Path(__file__).parent
driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-core is not installed")


def attributes_of(file: Path, name: str) -> Iterator[str]:
    """What a source takes of a name, `name.x` or `name.x.y`."""
    for node in ast.walk(ast.parse(file.read_text())):
        path: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            path.insert(0, inner.attr)
            inner = inner.value
        if path and isinstance(inner, ast.Name) and inner.id == name:
            yield ".".join(path)


def test_every_name_of_the_driver_is_there() -> None:
    names = set(attributes_of(CUDA / "cuda_core.py", "driver"))
    assert {"cuMemcpyHtoDAsync", "cuMemHostAlloc", "CUresult.CUDA_SUCCESS"} <= names
    for name in names:
        found: object = driver
        for part in name.split("."):
            found = getattr(found, part)


# Parameters as the code gives them: by position.
@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        ("cuInit", 1),
        ("cuDeviceGetCount", 0),
        ("cuDeviceGet", 1),
        ("cuDriverGetVersion", 0),
        ("cuDevicePrimaryCtxSetFlags", 2),
        ("cuMemAlloc", 1),
        ("cuMemFree", 1),
        ("cuMemHostAlloc", 2),
        ("cuMemFreeHost", 1),
        ("cuMemcpyHtoDAsync", 4),
        ("cuMemcpyDtoHAsync", 4),
        ("cuMemcpyDtoDAsync", 4),
        ("cuMemsetD8Async", 4),
        ("cuMemGetInfo", 0),
        ("cuGetErrorString", 1),
    ],
)
def test_the_driver_s_calls_take_what_they_are_given(function: str, parameters: int) -> None:
    signature = str(getattr(driver, function).__doc__).splitlines()[0]
    inner = signature[signature.index("(") + 1 : signature.rindex(")")]
    assert len([part for part in inner.split(",") if part.strip()]) == parameters


def test_every_name_of_cuda_core_is_there_and_takes_what_it_is_given() -> None:
    from cuda.core import Device, Event, EventOptions, Stream, StreamOptions
    from cuda.core.graph import Graph, GraphBuilder

    assert EventOptions(blocking_sync=True).blocking_sync
    assert not EventOptions().timing_enabled
    assert StreamOptions().nonblocking, "streams must not wait for the default one"
    uses: dict[type, str] = {
        Device: "name compute_capability set_current create_stream create_event",
        Stream: "handle record wait create_graph_builder",
        Event: "is_done sync",
        GraphBuilder: "begin_building end_building complete close",
        Graph: "launch close",
    }
    for kind, names in uses.items():
        for name in names.split():
            assert hasattr(kind, name), f"{kind.__name__}.{name}"
    first_lines = {
        Device.create_event: "options: EventOptions | None = None",
        Stream.record: "event: Event | None = None",
        Stream.wait: "event_or_stream: Event | Stream",
        GraphBuilder.begin_building: "mode",
        Graph.launch: "stream: Stream",
    }
    for method, parameter in first_lines.items():
        assert parameter in str(method.__doc__).splitlines()[0]
    assert "thread_local" in str(GraphBuilder.begin_building.__doc__)


def test_pycuda_s_names_are_in_its_source() -> None:
    """It cannot be imported without a driver: the names were read in the source of 2026.1."""
    known = set((HERE / "pycuda_names.txt").read_text().split())
    used = set(attributes_of(CUDA / "pycuda.py", "driver"))
    assert {"memcpy_htod_async", "Context.pop", "event_flags"} <= used
    assert used <= known


def test_codes_that_end_a_process_are_those_of_which_the_driver_says_so() -> None:
    said = {
        code.name
        for code in driver.CUresult
        if re.search("terminated and relaunched|inconsistent state|must be destroyed", code.__doc__)
    }
    assert said
    assert said <= set(LOST)
    assert set(LOST) <= {code.name for code in driver.CUresult}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered", "ILLEGAL_ADDRESS"),
        ("cuEventSynchronize failed: unspecified launch failure", "LAUNCH_FAILED"),
        ("CUDA failure 710: device-side assert triggered ; GPU=0", "ASSERT"),
        ("[cudaErrorECCUncorrectable] memory", "ECC_UNCORRECTABLE"),
    ],
)
def test_a_lost_context_is_known_by_name_and_by_the_driver_s_words(text: str, code: str) -> None:
    assert lost_by(text) == f"CUDA_ERROR_{code}"
    found = device_error(RuntimeError(text), "computing")
    assert isinstance(found, DeviceLostError)
    assert "restarted" in str(found)


@pytest.mark.parametrize(
    "text", ["CUDA_ERROR_OUT_OF_MEMORY: out of memory", "CUDA_ERROR_INVALID_VALUE", "no such file"]
)
def test_what_a_context_survives_is_no_loss(text: str) -> None:
    with pytest.raises(DeviceError, match=r"copying failed: ") as found, reported("copying"):
        raise RuntimeError(text)
    assert type(found.value) is DeviceError


def test_a_probe_that_fails_is_a_loss_whatever_its_code() -> None:
    def fail() -> None:
        raise DeviceError("CUDA_ERROR_UNKNOWN")

    probe(lambda: 1)
    with pytest.raises(DeviceLostError, match="answers no call"):
        probe(lambda: 1, fail)


def test_memory_is_shared_by_its_address() -> None:
    memory = np.arange(12, dtype=np.int32)
    shared = array_at(memory.ctypes.data, memory.nbytes, (2, 3), np.int32)
    shared[1, 2] = 77
    assert memory[5] == 77
    assert array_at(memory.ctypes.data, memory.nbytes, (0, 3), np.int32).shape == (0, 3)
    with pytest.raises(AssertionError):
        array_at(memory.ctypes.data, memory.nbytes, (13,), np.int32)


def test_an_unknown_binding_is_refused_with_what_there_is() -> None:
    with pytest.raises(UnsupportedError, match=r"'cupy'; it is one of \['cuda-core', 'pycuda'\]"):
        open_device("cupy")


needs_no_driver = pytest.mark.skipif(
    subprocess.run(["sh", "-c", "ldconfig -p | grep -q libcuda.so.1"], check=False).returncode == 0,
    reason="this machine has a driver; tests/gpu tries the bindings on it",
)


@needs_no_driver
def test_without_a_driver_that_is_what_is_said() -> None:
    with pytest.raises(PlanMismatchError, match=r"no NVIDIA driver .* --gpus all"):
        open_device("cuda-core")
    assert "no NVIDIA driver" in str(obstacle_to_cuda())


@needs_no_driver
def test_pycuda_says_what_is_missing() -> None:
    with pytest.raises(PlanMismatchError, match=r"no NVIDIA driver|enginehouse\[pycuda\]"):
        open_device("pycuda")


def test_a_binding_that_is_not_installed_is_named_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['cuda.core'] = None\n"
        "from enginehouse_server.engine.cuda import obstacle_to_cuda\n"
        "print(obstacle_to_cuda())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'enginehouse[cuda]'" in found.stdout


def test_no_binding_is_imported_without_need() -> None:
    code = (
        "import sys\n"
        "import enginehouse_server.engine.cuda, enginehouse_server.engine.create\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('cuda', 'pycuda')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
