"""The shapes that a model was warmed up for, and how long each takes."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from enginehouse_server.engine.base import Shape

__all__ = ["LatencyModel", "ShapeGrid"]


class ShapeGrid:
    """Buckets: padded lengths, each with the batch sizes that it runs in, both ascending."""

    def __init__(self, buckets: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Takes `(length, batch sizes)` pairs, ascending by length."""
        pairs = [(length, tuple(batches)) for length, batches in buckets]
        self.lengths = tuple(length for length, _ in pairs)
        self.batches = tuple(batches for _, batches in pairs)

    @property
    def max_tokens(self) -> int:
        """The longest row."""
        return self.lengths[-1]

    @property
    def shapes(self) -> list[Shape]:
        """Every shape, by length and then batch size."""
        pairs = zip(self.lengths, self.batches, strict=True)
        return [Shape(batch, length) for length, batches in pairs for batch in batches]

    def bucket_of(self, num_tokens: int) -> int:
        """Index of the shortest bucket that holds a row of `num_tokens`."""
        return bisect_left(self.lengths, num_tokens)

    def shape_of(self, bucket: int, num_rows: int) -> Shape:
        """The smallest shape of a bucket that holds that many rows."""
        batches = self.batches[bucket]
        return Shape(batches[bisect_left(batches, num_rows)], self.lengths[bucket])


class LatencyModel:
    """Predicted seconds of every batch of a grid, by a curve through the measured times.

    The curve is a constant, the tokens, and the tokens times the length, of which the work of a
    transformer is made, weighted by least squares. The single measurements are not used as they
    are: who picks the cheapest of many shapes by noisy times picks noise.

    Attributes:
        seconds: By bucket and number of rows: `seconds[bucket][num_rows]`.
        seconds_per_token: At the shape where a token is cheapest.
    """

    def __init__(self, grid: ShapeGrid, measured: Mapping[Shape, float]) -> None:
        """Takes the measured times in seconds by shape; with fewer than four, time is tokens."""
        predict = _fit(measured)
        self.seconds = [
            [predict(grid.shape_of(bucket, max(rows, 1))) for rows in range(batches[-1] + 1)]
            for bucket, batches in enumerate(grid.batches)
        ]
        self.seconds_per_token = min(predict(s) / s.num_tokens for s in grid.shapes)


def _fit(measured: Mapping[Shape, float]) -> Callable[[Shape], float]:
    if len(measured) < 4:
        return lambda shape: 1e-4 * shape.num_tokens
    terms = np.array([_terms(shape) for shape in measured])
    seconds = np.array(list(measured.values()))
    # Divided by the time itself: a tenth too much is as wrong for a short batch as for a long one.
    weights, *_ = np.linalg.lstsq(terms / seconds[:, None], np.ones(len(seconds)), rcond=None)
    floor = float(seconds.min())
    return lambda shape: max(float(np.dot(_terms(shape), weights)), floor)


def _terms(shape: Shape) -> tuple[float, float, float]:
    return 1.0, shape.num_tokens, shape.num_tokens * shape.length
