"""Computes whatever is asked in the shapes that are served, of an engine that takes no others."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from enginehouse_builder.manifest import Bucket
from enginehouse_server.engine.base import EncoderLane, Logits, Shape, TokenRow

__all__ = ["ServedLane"]


class ServedLane:
    """A lane that pads as a server does, and computes one batch after the other where it must."""

    def __init__(self, lane: EncoderLane, buckets: Sequence[Bucket]) -> None:
        """Takes the lane, and the shapes that it takes, ascending."""
        self._lane, self._buckets = lane, buckets
        self._lengths = [bucket.length for bucket in buckets]
        self._rows: Sequence[TokenRow] = ()
        self._shape = Shape(0, 0)

    def start(self, rows: Sequence[TokenRow], shape: Shape) -> None:
        """Takes a batch of at most the longest length."""
        self._rows, self._shape = rows, shape

    def wait(self) -> Logits:
        """Computes it: logits `[rows, labels]`.

        Raises:
            DeviceError: The runtime failed.
        """
        bucket = self._buckets[bisect_left(self._lengths, self._shape.length)]
        most = bucket.batches[-1]
        num_empty = self._shape.batch - len(self._rows)
        found = []
        for start in range(0, len(self._rows), most):
            part = self._rows[start : start + most]
            wanted = min(len(part) + num_empty, most)
            batch = bucket.batches[bisect_left(bucket.batches, wanted)]
            self._lane.start(part, Shape(batch, bucket.length))
            found.append(self._lane.wait())
        return np.concatenate(found)
