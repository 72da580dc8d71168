"""What the engine inspector says of a plan, kept at its first load."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse_server.engine.base import EncoderSpec, KernelKeeper, Shape
from enginehouse_server.engine.create import create_encoder
from tests.fixtures.sums import random_rows, write_sums
from tests.fixtures.trt_double import DoubleModule
from tests.fixtures.trt_double.plans import encoder_plan

NAME = "Double-GPU-sm90.layers.json"


@pytest.fixture
def spec(tmp_path: Path) -> EncoderSpec:
    made = encoder_plan(write_sums(tmp_path), tmp_path / "model.plan", ((1, 1), (8, 16)))
    return replace(made, kernels=tmp_path / "kernels")


def _load(spec: EncoderSpec, double: DoubleModule, *, has_no_layers: bool = False) -> None:
    with closing(create_encoder("tensorrt", spec)) as engine:
        double.engines[-1].has_no_layers = has_no_layers
        engine.lanes[0].start(random_rows(1, 0), Shape(1, 16))
        engine.lanes[0].wait()
        assert isinstance(engine, KernelKeeper)
        engine.keep_kernels()


def test_the_first_load_writes_the_layers_and_the_next_leaves_them(
    spec: EncoderSpec, double: DoubleModule
) -> None:
    assert spec.kernels is not None
    _load(spec, double)
    file = spec.kernels / NAME
    told = json.loads(file.read_bytes())
    assert [layer["LayerType"] for layer in told["Layers"]] == [
        node.op_type for node in double.engines[0].nodes
    ]
    before = file.stat()
    _load(spec, double)
    assert file.stat() == before


def test_an_inspector_that_says_nothing_is_said_and_nothing_is_written(
    spec: EncoderSpec, double: DoubleModule, caplog: pytest.LogCaptureFixture
) -> None:
    assert spec.kernels is not None
    _load(spec, double, has_no_layers=True)
    assert "says nothing" in caplog.text
    assert not spec.kernels.exists()


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(
    spec: EncoderSpec, double: DoubleModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("")
    folder = tmp_path / "a file" / "kernels"
    _load(replace(spec, kernels=folder), double)
    assert str(folder / NAME) in caplog.text
    assert "--state-dir" in caplog.text
