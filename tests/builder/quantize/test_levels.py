import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from enginehouse_builder.quantize.levels import (
    group_for,
    int4_levels,
    int8_levels,
    packed_int4,
)


def _matrix(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1])
def test_int8_is_half_a_step_off_at_most(axis: int) -> None:
    matrix = _matrix(96, 64)
    matrix[3] *= 50
    matrix[:, 5] = 0
    found = int8_levels(matrix, axis)
    steps = np.expand_dims(found.steps, 1 - axis)
    assert found.steps.shape == (matrix.shape[axis],)
    assert (np.abs(found.values * steps - matrix) <= steps / 2 * 1.001).all()
    assert np.abs(found.values).max() == 127


@pytest.mark.parametrize("axis", [0, 1])
def test_int4_has_a_step_for_each_group_of_a_channel(axis: int) -> None:
    matrix = _matrix(128, 64) if axis == 1 else _matrix(64, 128)
    found = int4_levels(matrix, axis, 32)
    assert found.steps.shape == ((4, 64) if axis == 1 else (64, 4))
    assert found.values.min() >= -8
    assert found.values.max() <= 7
    steps = np.repeat(found.steps, 32, axis=1 - axis)
    wrong = found.values * steps - matrix
    assert np.square(wrong).sum() < 0.02 * np.square(matrix).sum()


def test_an_int4_step_is_the_best_of_those_tried() -> None:
    matrix = _matrix(64, 16)
    found = int4_levels(matrix, 1, 64)
    plain = np.abs(matrix).max(axis=0) / 7
    without = np.square(np.clip(np.rint(matrix / plain), -8, 7) * plain - matrix).sum(axis=0)
    assert (np.square(found.values * found.steps - matrix).sum(axis=0) <= without * 1.0001).all()
    assert (found.steps < plain).any()


def test_groups_divide_their_channels() -> None:
    assert [group_for(n) for n in (4096, 192, 96, 48)] == [128, 64, 32, None]


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=40))
def test_packed_levels_are_read_back_by_onnx(levels: list[int]) -> None:
    values = np.array(levels, np.int8)
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=[len(levels)])
    tensor.raw_data = packed_int4(values)
    assert numpy_helper.to_array(tensor).astype(np.int8).tolist() == levels
