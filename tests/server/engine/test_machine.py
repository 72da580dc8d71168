import sys
from pathlib import Path

import pytest

from enginehouse_server.engine import processor
from enginehouse_server.engine.machine import probe_machine
from enginehouse_server.engine.runtimes import RUNTIMES, Runtime, find_runtime, least_driver
from tests.fixtures.nvidia_smi import H100_ROW, install_nvidia_smi


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that come before the installed ones, also in child processes."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return tmp_path


def _installed(site: Path, name: str, version: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_this_machine_is_described_whole() -> None:
    found = probe_machine()
    assert [runtime.name for runtime in found.runtimes] == list(RUNTIMES)
    assert found.runtime("openvino").is_usable
    assert "CPUExecutionProvider" in found.runtime("onnxruntime").providers
    assert found.num_threads >= 1
    assert found.memory_bytes > 1 << 28
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert bool(found.gpus) != bool(found.gpu_obstacle)


def test_a_runtime_that_nobody_looked_for_counts_as_not_installed() -> None:
    found = probe_machine(["openvino"])
    assert [runtime.name for runtime in found.runtimes] == ["openvino"]
    assert found.runtime("tensorrt") == Runtime("tensorrt")
    assert not found.runtime("tensorrt").is_usable


def test_onnxruntime_computes_on_a_gpu_if_both_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, H100_ROW))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = probe_machine(["onnxruntime"])
    assert found.gpu is not None
    assert found.gpu.compute_capability == "sm90"
    has_provider = "CUDAExecutionProvider" in found.runtime("onnxruntime").providers
    assert found.has_cuda_provider == has_provider


@pytest.mark.parametrize("name", ["abacus", "pycuda"])
def test_what_is_not_installed_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert find_runtime(name) == Runtime(name)


def test_tensorrt_tells_its_own_version(site: Path) -> None:
    _installed(site, "tensorrt", "11.4.0")
    (site / "tensorrt.py").write_text("__version__ = '11.4.0.106'\n")
    assert find_runtime("tensorrt") == Runtime("tensorrt", "11.4.0.106")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise ImportError('libnvinfer.so.11: no such file')", "libnvinfer.so.11: no such file"),
        ("import os; os.abort()", "ends the process with signal 6"),
        ("import sys; sys.exit(3)", "it cannot be imported: no word why"),
    ],
)
def test_a_tensorrt_that_cannot_be_imported_ends_nobody_but_its_own_process(
    site: Path, code: str, expected: str
) -> None:
    _installed(site, "tensorrt", "11.4.0.106")
    (site / "tensorrt.py").write_text(code)
    found = find_runtime("tensorrt")
    assert found.version == "11.4.0.106"
    assert expected in found.fault
    assert not found.is_usable


def test_a_distribution_without_its_module_cannot_be_used(site: Path) -> None:
    _installed(site, "tensorrt", "11.4.0.106")
    assert find_runtime("tensorrt").fault == "there is no module tensorrt"


def test_two_onnxruntimes_in_one_place_cannot_be_used(site: Path) -> None:
    _installed(site, "onnxruntime-gpu", "1.31.1")
    _installed(site, "onnxruntime", "1.32.0")
    found = find_runtime("onnxruntime")
    assert "both onnxruntime and onnxruntime-gpu are installed" in found.fault


def test_the_features_of_a_processor_are_those_that_engines_gain_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_CPUINFO", file)
    file.write_text("model name\t: A Xeon\nflags\t\t: fpu amx_bf16 avx2 avx512f\n")
    assert processor.processor_features() == ("avx2", "avx512f", "amx_bf16")
    assert processor.processor_name() == "A Xeon"
    file.write_text("processor : 0\nFeatures\t: fp asimd bf16\n")
    assert processor.processor_features() == ("asimd", "bf16")
    file.unlink()
    assert processor.processor_features() == ()


@pytest.mark.parametrize(
    ("wheel", "flavour", "expected"),
    [
        ("tensorrt-cu13-libs", "tensorrt", "580"),
        ("tensorrt-cu12-libs", "tensorrt", "535"),
        ("tensorrt-rtx-cu12-libs", "tensorrt-rtx", "535"),
        ("tensorrt-rtx-cu12-libs", "tensorrt", "580"),
    ],
)
def test_the_cuda_that_tensorrt_s_wheels_are_for_decides_the_driver(
    site: Path, wheel: str, flavour: str, expected: str
) -> None:
    _installed(site, wheel, "11.4.0.106")
    assert least_driver(flavour) == expected
