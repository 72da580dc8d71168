import dataclasses
import json

from click.testing import CliRunner

from enginehouse_builder.manifest import from_json
from enginehouse_server.commands.machine import machine, machine_lines
from enginehouse_server.engine.gpus import Gpu
from enginehouse_server.engine.machine import Machine
from enginehouse_server.engine.runtimes import Runtime
from tests.fixtures.plans import GPU_MACHINE, with_runtimes


def test_what_it_prints_as_json_is_the_machine() -> None:
    result = CliRunner().invoke(machine, ["--json"])
    assert result.exit_code == 0
    found = from_json(Machine, json.loads(result.stdout), "machine")
    assert found.runtime("openvino").version


def test_what_it_prints_for_people_has_a_line_for_everything() -> None:
    result = CliRunner().invoke(machine)
    assert result.exit_code == 0
    names = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert names[:5] == ["system", "processor", "features", "threads", "memory"]
    assert {"openvino", "onnxruntime", "tensorrt", "tensorrt-rtx", "cuda-core", "pycuda"} < {*names}


def test_a_machine_with_gpus_shows_each_and_what_is_wrong_with_runtimes() -> None:
    other = Gpu(1, "NVIDIA GB10", "sm121", 0)
    broken = Runtime("tensorrt", "11.4.0.106", "no libnvinfer")
    shown = dataclasses.replace(
        with_runtimes(GPU_MACHINE, broken, Runtime("pycuda")), gpus=(*GPU_MACHINE.gpus, other)
    )
    lines = machine_lines(shown)
    assert "GPU 0      NVIDIA H100 80GB HBM3, sm90, 80.0 GiB" in lines
    assert "GPU 1      NVIDIA GB10, sm121, unknown" in lines
    assert "driver     580.65.06, CUDA 13.0" in lines
    assert "tensorrt   11.4.0.106, cannot be used: no libnvinfer" in lines
    assert "pycuda     not installed" in lines
