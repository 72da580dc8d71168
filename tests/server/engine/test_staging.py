from typing import NamedTuple

import numpy as np

from enginehouse_server.engine.base import Shape
from enginehouse_server.engine.staging import Staging


class Row(NamedTuple):
    ids: list[int]
    type_ids: list[int] | None = None


INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def test_rows_are_padded_to_the_shape() -> None:
    found = Staging(INPUTS, 9, 32).fill([Row([1, 2, 3]), Row([4, 5], [0, 1])], Shape(3, 4))
    np.testing.assert_array_equal(found["input_ids"], [[1, 2, 3, 9], [4, 5, 9, 9], [9] * 4])
    np.testing.assert_array_equal(found["token_type_ids"], [[0] * 4, [0, 1, 0, 0], [0] * 4])
    # a padded row attends to one token, or its softmax would have nothing to divide by
    np.testing.assert_array_equal(
        found["attention_mask"], [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    )


def test_nothing_of_the_last_batch_is_left() -> None:
    staging = Staging(INPUTS, 0, 32)
    staging.fill([Row([7] * 8, [1] * 8)] * 4, Shape(4, 8))
    found = staging.fill([Row([1])], Shape(2, 8))
    assert found["input_ids"].sum() == 1
    assert found["attention_mask"].sum() == 2
    assert found["token_type_ids"].sum() == 0


def test_only_the_inputs_of_the_graph_are_made() -> None:
    assert set(Staging(("input_ids",), 0, 8).fill([Row([1])], Shape(1, 2))) == {"input_ids"}
