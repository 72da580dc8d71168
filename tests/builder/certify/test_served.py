from collections.abc import Sequence

import numpy as np
import pytest

from enginehouse_builder.certify.served import ServedLane
from enginehouse_builder.manifest import Bucket
from enginehouse_server.engine.base import Logits, Shape, TokenRow

BUCKETS = (Bucket(8, (1, 2, 4)), Bucket(12, (1, 3)), Bucket(40, (1,)))


class Row:
    type_ids = None

    def __init__(self, length: int) -> None:
        self.ids = [1] * length


class Lane:
    """Says of each row how long it is."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        self._rows: Sequence[TokenRow] = ()

    def start(self, rows: Sequence[TokenRow], shape: Shape) -> None:
        assert len(rows) <= shape.batch
        assert all(len(row.ids) <= shape.length for row in rows)
        self.shapes.append(shape)
        self._rows = rows

    def wait(self) -> Logits:
        return np.array([[len(row.ids)] for row in self._rows], np.float32)


@pytest.mark.parametrize(
    ("lengths", "asked", "expected"),
    [
        ([3], Shape(1, 3), [Shape(1, 8)]),
        ([3, 8], Shape(3, 8), [Shape(4, 8)]),  # with an empty row
        ([1, 2, 3, 4, 5], Shape(5, 5), [Shape(4, 8), Shape(1, 8)]),
        ([9, 12, 10], Shape(4, 12), [Shape(3, 12)]),  # no room for the empty row
        ([9, 12], Shape(2, 12), [Shape(3, 12)]),
        ([40, 13], Shape(2, 40), [Shape(1, 40), Shape(1, 40)]),
    ],
)
def test_what_is_asked_is_computed_in_shapes_that_are_served(
    lengths: list[int], asked: Shape, expected: list[Shape]
) -> None:
    lane = Lane()
    served = ServedLane(lane, BUCKETS)
    served.start([Row(length) for length in lengths], asked)
    assert served.wait().ravel().tolist() == lengths
    assert lane.shapes == expected
