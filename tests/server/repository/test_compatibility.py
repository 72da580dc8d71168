import dataclasses
import shlex
from pathlib import Path

import pytest

from enginehouse_builder.manifest import Engine
from enginehouse_server.engine.gpus import Gpu
from enginehouse_server.engine.machine import Machine
from enginehouse_server.engine.runtimes import Runtime
from enginehouse_server.repository.compatibility import judge, missing_target, rank
from enginehouse_server.repository.verdict import Rebuild, Verdict
from tests.fixtures.plans import GPU_MACHINE, H100, engine_of, plan_of, with_runtimes

REBUILD = Rebuild("topics", Path("/models"))
CORE = Runtime("cuda-core", "1.2.2")
RTX = Runtime("tensorrt-rtx", "1.7.1.116")
TRT = Runtime("tensorrt", "11.4.0.106")
OPENVINO = Runtime("openvino", "2026.4.1", has_bf16=True)
CPU_MACHINE = dataclasses.replace(
    with_runtimes(GPU_MACHINE, OPENVINO), gpus=(), gpu_obstacle="nvidia-smi is not found"
)
_CPU_PROVIDER = ("CPUExecutionProvider",)
_GPU_PROVIDERS = ("CUDAExecutionProvider", *_CPU_PROVIDER)
L4 = Gpu(0, "NVIDIA L4", "sm89", 23 << 30)
L4_MACHINE = dataclasses.replace(with_runtimes(GPU_MACHINE, TRT, RTX, CORE), gpus=(L4,))


def rtx_plan(*capabilities: str) -> Engine:
    return engine_of(
        "tensorrt-rtx",
        plan_of(version="1.7.1.116", flavour="tensorrt-rtx", compute_capabilities=capabilities),
    )


def said(engine: Engine, machine: Machine) -> Verdict:
    verdict = judge(engine, machine, REBUILD)
    assert not verdict.runs
    return verdict


@pytest.mark.parametrize(
    ("engine", "machine"),
    [
        (engine_of("tensorrt", plan_of()), GPU_MACHINE),
        (engine_of("tensorrt", plan_of(), min_driver="580.65"), GPU_MACHINE),
        (  # of a manifest that does not say which driver
            engine_of("tensorrt", plan_of()),
            dataclasses.replace(GPU_MACHINE, driver="575.57.08"),
        ),
        (rtx_plan("sm86", "sm89"), L4_MACHINE),
        (rtx_plan("any"), L4_MACHINE),
        (engine_of("openvino"), CPU_MACHINE),
        (engine_of("openvino", precision="bf16"), CPU_MACHINE),
        (
            engine_of("onnxruntime", precision="fp16"),
            with_runtimes(
                GPU_MACHINE, Runtime("onnxruntime", "2026.4.1", providers=_GPU_PROVIDERS)
            ),
        ),
    ],
)
def test_what_has_all_that_it_needs_runs(engine: Engine, machine: Machine) -> None:
    assert judge(engine, machine, REBUILD) == Verdict(runs=True)


@pytest.mark.parametrize(
    ("engine", "machine", "field", "wanted", "found", "remedy"),
    [
        (
            *(engine_of("tensorrt", plan_of()), CPU_MACHINE, "GPU", "GPU of sm90"),
            *("none: nvidia-smi is not found", "--target openvino=fp32"),
        ),
        (
            *(engine_of("tensorrt", plan_of("sm80")), GPU_MACHINE, "compute capability", "sm80"),
            *("sm90 (NVIDIA H100 80GB HBM3)", "--target tensorrt:sm90=fp32 --repository /models"),
        ),
        (  # TensorRT-RTX knows no such GPU, whatever the plan is for
            *(rtx_plan("any"), GPU_MACHINE, "compute capability", "sm75, sm80, sm86, sm89, sm120"),
            *("sm90", "--target tensorrt:sm90=fp32"),
        ),
        (
            *(rtx_plan("sm89"), with_runtimes(L4_MACHINE, TRT, CORE), "TensorRT flavour"),
            *("tensorrt-rtx 1.7.1.116", "tensorrt 11.4.0.106"),
            "pip install 'tensorrt_rtx_cu13_bindings==1.7.1.116' 'tensorrt_rtx_cu13_libs==1.7.1",
        ),
        (
            *(rtx_plan("sm89"), with_runtimes(L4_MACHINE, CORE), "runtime"),
            *("tensorrt-rtx 1.7.1.116", "not installed"),
            "pip install 'enginehouse[tensorrt-rtx]'",
        ),
        (
            engine_of("tensorrt", plan_of()),
            with_runtimes(GPU_MACHINE, dataclasses.replace(TRT, fault="no libnvinfer"), CORE),
            *("runtime", "tensorrt 11.4.0.106", "cannot be used: no libnvinfer"),
            "pip install --force-reinstall 'enginehouse[tensorrt]'",
        ),
        (
            engine_of("tensorrt", plan_of(version="11.3.0.99")),
            *(GPU_MACHINE, "TensorRT version", "tensorrt 11.3.0.99", "11.4.0.106"),
            "tensorrt:sm90=fp32 --repository /models, or pip install 'tensorrt==11.3.0.99'",
        ),
        (
            *(engine_of("tensorrt", plan_of(), min_driver="590.1"), GPU_MACHINE, "driver"),
            *("590.1 or later", "580.65.06", "install an NVIDIA driver of 590.1 or later"),
        ),
        (
            engine_of("tensorrt", plan_of(), min_driver="580"),
            dataclasses.replace(GPU_MACHINE, driver="575.57.08"),
            *("driver", "580 or later", "575.57.08", "--target openvino=fp32"),
        ),
        (
            *(engine_of("tensorrt", plan_of(device_bytes=100 << 30)), GPU_MACHINE, "GPU memory"),
            *("100.00 GiB", "80.00 GiB", "a larger GPU"),
        ),
        (
            *(engine_of("tensorrt", plan_of()), with_runtimes(GPU_MACHINE, TRT), "CUDA binding"),
            *("cuda-core or pycuda", "neither", "pip install 'enginehouse[tensorrt]'"),
        ),
        (
            engine_of("openvino", precision="bf16"),
            with_runtimes(CPU_MACHINE, Runtime("openvino", "2026.4.1")),
            *("precision", "openvino computing in bf16", "a processor", "--target openvino=fp32"),
        ),
        (
            engine_of("onnxruntime", precision="fp16"),
            with_runtimes(CPU_MACHINE, Runtime("onnxruntime", "1.32.0", providers=_CPU_PROVIDER)),
            *("precision", "onnxruntime computing in fp16", "a processor"),
            "--target onnxruntime=fp32",
        ),
        (
            *(engine_of("onnxruntime"), CPU_MACHINE, "runtime", "onnxruntime", "not installed"),
            "pip install 'enginehouse[onnxruntime]'",
        ),
        (
            *(engine_of("onnxruntime"), GPU_MACHINE, "runtime", "onnxruntime", "not installed"),
            "pip install 'enginehouse[cuda]'",
        ),
        (
            engine_of("openvino"),
            dataclasses.replace(CPU_MACHINE, memory_bytes=8),
            *("memory", "for the weights alone", "GiB", "narrower precision"),
        ),
        (
            *(engine_of("abacus"), CPU_MACHINE, "backend", "abacus"),
            *("openvino, onnxruntime, tensorrt", "update this server"),
        ),
    ],
)
def test_what_lacks_something_is_told_what_and_what_to_do(
    engine: Engine, machine: Machine, field: str, wanted: str, found: str, remedy: str
) -> None:
    verdict = said(engine, machine)
    assert verdict.field == field
    for text, part in ((verdict.wanted, wanted), (verdict.found, found), (verdict.remedy, remedy)):
        assert part in text
    assert verdict.reason == f"{field}: it needs {verdict.wanted}, here is {verdict.found}"


def test_a_plan_that_fits_another_gpu_of_the_machine_is_sent_there() -> None:
    second = dataclasses.replace(L4, index=1)
    machine = dataclasses.replace(GPU_MACHINE, gpus=(H100, second))
    verdict = said(engine_of("tensorrt", plan_of("sm89")), machine)
    assert "CUDA_VISIBLE_DEVICES=1" in verdict.remedy


def test_what_no_processor_computes_in_is_not_the_remedy_for_one() -> None:
    verdict = said(engine_of("tensorrt", plan_of(), precision="bf16"), CPU_MACHINE)
    assert "--target openvino=fp32" in verdict.remedy


def test_a_remedy_is_a_command_that_a_shell_takes_as_it_is() -> None:
    rebuild = Rebuild("topics", Path("/my models"))
    words = shlex.split(rebuild.to("tensorrt:sm90=fp32"))
    assert words[:2] == ["enginehouse", "build"]
    assert words[-2:] == ["--repository", "/my models"]


@pytest.mark.parametrize(
    ("here", "is_noted"),
    [("2026.4.1", False), ("2026.5.0", False), ("2026.4.0", True), ("2025.9", True)],
)
def test_an_older_runtime_than_the_certified_is_a_note(here: str, is_noted: bool) -> None:
    machine = with_runtimes(CPU_MACHINE, Runtime("openvino", here))
    verdict = judge(engine_of("openvino"), machine, REBUILD)
    assert verdict.runs
    assert bool(verdict.notes) == is_noted


def test_a_plan_that_no_gpu_has_run_yet_is_noted() -> None:
    verdict = judge(engine_of("tensorrt", plan_of(certified="lowered")), GPU_MACHINE, REBUILD)
    assert verdict.runs
    assert "its first load here certifies it" in verdict.notes[0]


def test_the_gpu_comes_before_the_processor_and_openvino_before_onnxruntime_there() -> None:
    engines = [
        engine_of("onnxruntime"),
        engine_of("openvino"),
        rtx_plan("any"),
        engine_of("tensorrt", plan_of()),
    ]
    for provider, expected in (
        ("CPUExecutionProvider", ["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]),
        ("CUDAExecutionProvider", ["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"]),
    ):
        runtime = Runtime("onnxruntime", "1.32.0", providers=(provider,))
        machine = with_runtimes(GPU_MACHINE, runtime)
        found = sorted(engines, key=lambda e: rank(e, machine))
        assert [engine.backend for engine in found] == expected
    without = dataclasses.replace(machine, gpus=())
    assert rank(engines[1], without) < rank(engines[0], without)


@pytest.mark.parametrize(
    ("engines", "machine", "expected"),
    [
        ([engine_of("openvino")], GPU_MACHINE, "tensorrt:sm90=int8"),
        ([], GPU_MACHINE, "tensorrt:sm90=int8"),
        ([engine_of("tensorrt", plan_of())], GPU_MACHINE, ""),
        ([engine_of("openvino")], CPU_MACHINE, ""),
        ([engine_of("openvino")], with_runtimes(L4_MACHINE, RTX), "tensorrt-rtx:sm89=int8"),
        ([rtx_plan("sm89")], L4_MACHINE, "tensorrt:sm89=int8"),
        ([engine_of("openvino")], with_runtimes(GPU_MACHINE, RTX), ""),
        ([engine_of("openvino")], with_runtimes(GPU_MACHINE, OPENVINO), ""),
    ],
)
def test_what_is_missing_is_what_the_gpu_and_the_runtimes_there_can_do_better(
    engines: list[Engine], machine: Machine, expected: str
) -> None:
    assert missing_target(engines, machine, "int8") == expected
