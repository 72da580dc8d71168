import dataclasses
from pathlib import Path

import pytest

from enginehouse_builder.manifest import Engine
from enginehouse_server.engine.runtimes import Runtime
from enginehouse_server.errors import PlanMismatchError, ProbeError, UnloadableError
from enginehouse_server.repository.choose import choose
from enginehouse_server.repository.verdict import Rebuild
from tests.fixtures.plans import GPU_MACHINE, engine_of, plan_of, with_runtimes

REBUILD = Rebuild("topics", Path("/models"))
OPENVINO = Runtime("openvino", "2026.4.1")
MACHINE = with_runtimes(GPU_MACHINE, *GPU_MACHINE.runtimes, OPENVINO)
FITTING = engine_of("tensorrt", plan_of())
OTHER_GPU = engine_of("tensorrt", plan_of("sm80"))
ON_PROCESSOR = engine_of("openvino")


class Loading:
    """Loads anything but what is wrong; says what it was asked for."""

    def __init__(self, *wrong: Engine) -> None:
        self.wrong, self.asked = wrong, list[str]()

    def __call__(self, engine: Engine) -> str:
        self.asked.append(engine.target)
        if engine in self.wrong:
            raise ProbeError("it answers otherwise")
        return engine.target


def test_the_best_that_runs_is_loaded_and_nothing_else() -> None:
    load = Loading()
    choice = choose([ON_PROCESSOR, FITTING], load, REBUILD, MACHINE)
    assert (choice.built, choice.passed_over, load.asked) == (FITTING, (), ["tensorrt:sm90"])


def test_what_cannot_run_here_is_passed_over_without_being_loaded() -> None:
    load = Loading()
    choice = choose([OTHER_GPU, ON_PROCESSOR], load, REBUILD, MACHINE)
    assert (choice.built, load.asked) == (ON_PROCESSOR, ["openvino"])
    [reason] = choice.passed_over
    assert reason.startswith("tensorrt:sm80: compute capability: it needs sm80, here is sm90")
    assert "--target tensorrt:sm90=fp32" in reason


def test_what_loads_but_answers_otherwise_is_passed_over_too() -> None:
    choice = choose([FITTING, ON_PROCESSOR], Loading(FITTING), REBUILD, MACHINE)
    assert choice.built == ON_PROCESSOR
    assert choice.passed_over == ("tensorrt:sm90: it answers otherwise",)


def test_what_is_required_takes_the_place_of_nothing_else() -> None:
    load = Loading()
    with pytest.raises(PlanMismatchError, match="no engine of tensorrt, which is required"):
        choose([ON_PROCESSOR], load, REBUILD, MACHINE, "tensorrt")
    rtx = engine_of("tensorrt-rtx", dataclasses.replace(plan_of(), flavour="tensorrt-rtx"))
    with pytest.raises(PlanMismatchError, match="no engine of tensorrt, which is required"):
        choose([rtx, ON_PROCESSOR], load, REBUILD, MACHINE, "tensorrt")
    with pytest.raises(PlanMismatchError, match="compute capability"):
        choose([OTHER_GPU, ON_PROCESSOR], load, REBUILD, MACHINE, "tensorrt")
    assert load.asked == []


def test_where_nothing_can_be_served_every_reason_is_told() -> None:
    other_version = engine_of("tensorrt", plan_of(version="11.3.0.1"), target="tensorrt:old")
    with pytest.raises(UnloadableError, match=r"compute capability.*TensorRT version"):
        choose([OTHER_GPU, other_version], Loading(), REBUILD, MACHINE)
