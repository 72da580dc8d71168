"""What tests of a GPU need, and a report: what ran on which backend, what could not, and why."""

import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from functools import cache

import pytest

from enginehouse_server.engine.cuda import BINDINGS, CudaDevice, obstacle_to_cuda, open_device
from enginehouse_server.engine.gpus import PLAN_CAPABILITIES
from enginehouse_server.engine.machine import Machine, probe_machine

NOTHING_RAN = 5  # as pytest has it where no test was collected
BACKENDS = (*BINDINGS, "onnxruntime", *PLAN_CAPABILITIES)
_REPORT = pytest.StashKey[dict[str, Counter[str]]]()


@cache
def machine() -> Machine:
    return probe_machine()


@cache
def obstacle_to(backend: str) -> str:
    """Why a backend, or a CUDA binding, cannot be tried here; empty if it can."""
    if backend in BINDINGS:
        return obstacle_to_cuda(backend) or ""
    if cuda := obstacle_to_cuda():
        return cuda
    found, gpu = machine(), machine().gpu
    runtime = found.runtime(backend)
    if not runtime.is_usable:
        return runtime.fault or f"{backend} is not installed"
    if backend == "onnxruntime" and not found.has_cuda_provider:
        return (
            f"this ONNX Runtime has no provider for CUDA but {', '.join(runtime.providers)}: pip "
            "uninstall -y onnxruntime, then pip install --force-reinstall onnxruntime-gpu"
        )
    if backend in PLAN_CAPABILITIES:
        capability = gpu.compute_capability if gpu else "no GPU"
        if capability not in PLAN_CAPABILITIES[backend]:
            return f"it does not compile for {capability}, which this machine has"
    return ""


@pytest.fixture(params=BINDINGS)
def device(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    """The first GPU, by each binding."""
    opened = open_device(request.param)
    yield opened
    opened.close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what cannot run here, with the reason."""
    marker = item.get_closest_marker("gpu")
    if marker is None:
        return
    for backend in _backends_of(item, marker):
        if obstacle := obstacle_to(backend):
            pytest.skip(f"{backend}: {obstacle}")


def _backends_of(item: pytest.Item, marker: pytest.Mark) -> tuple[str, ...]:
    """Those that a marker names, and those that the test is a case of."""
    parameters: Mapping[str, object] = getattr(getattr(item, "callspec", None), "params", {})
    cases = [str(value) for value in parameters.values() if value in BACKENDS]
    return (*marker.args, *cases) or ("cuda-core",)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Counts how each case ended, for each backend that it needs."""
    report = yield
    marker = item.get_closest_marker("gpu")
    if marker is not None and (report.when == "call" or not report.passed):
        counts = item.config.stash.setdefault(_REPORT, {})
        for backend in _backends_of(item, marker):
            counts.setdefault(backend, Counter())[report.outcome] += 1
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run of GPU tests of which none could run is no success."""
    counts = session.config.stash.get(_REPORT, {})
    is_asked_for = "gpu" in str(session.config.option.markexpr)
    if is_asked_for and not any(c["passed"] or c["failed"] for c in counts.values()):
        session.exitstatus = NOTHING_RAN


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Says of each backend what ran and what could not, and why."""
    if "gpu" not in str(config.option.markexpr):
        return
    counts = config.stash.get(_REPORT, {})
    write = terminalreporter.write_line
    gpu, found = machine().gpu, machine()
    terminalreporter.section("GPU tests by backend")
    if gpu is None:
        write(f"no GPU: {found.gpu_obstacle}")
    else:
        write(f"{gpu.name}, {gpu.compute_capability}, driver {found.driver}, CUDA {found.cuda}")
    for backend in BACKENDS:
        count = counts.get(backend, Counter[str]())
        if obstacle := obstacle_to(backend):
            write(f"{backend:13} NOT RUN ({count['skipped']} tests): {obstacle}")
        else:
            version = found.runtime(backend).version
            write(f"{backend:13} {version}: {count['passed']} passed, {count['failed']} failed")
    if not any(c["passed"] or c["failed"] for c in counts.values()):
        write("NOTHING RAN: this says nothing about GPUs; see docs/gpu.md for what to install")


# Tests of a GPU start servers whose engines are those of the environment alone.
os.environ.pop("ENGINEHOUSE_REQUIRE", None)
