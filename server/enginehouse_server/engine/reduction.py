"""Reduced logits in memory: the outputs that a graph has for them, and where each begins.

The three outputs of a step lie one after the other, so that one copy moves what the step has of
them. Knows neither the graph that computes them (engine/graph/best.py) nor a runtime.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .base import Logits
from .decoder import ReducedLogits

__all__ = ["BEST_LOGITS", "BEST_TOKENS", "REDUCED", "WEIGHT_SUMS", "ReducedLayout"]

BEST_LOGITS, BEST_TOKENS, WEIGHT_SUMS = "best_logits", "best_tokens", "weight_sums"
REDUCED = (BEST_LOGITS, BEST_TOKENS, WEIGHT_SUMS)
_ALIGNMENT = 256  # bytes: what TensorRT demands of an address
_ITEM_BYTES = 4


@dataclass(frozen=True, slots=True)
class ReducedLayout:
    """The outputs of some rows.

    Attributes:
        num_rows: At least one.
        num_best: Logits of each.
    """

    num_rows: int
    num_best: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the outputs, by name."""
        best = (self.num_rows, self.num_best)
        return {BEST_LOGITS: best, BEST_TOKENS: best, WEIGHT_SUMS: (self.num_rows,)}

    @property
    def offsets(self) -> dict[str, int]:
        """Where each output begins, bytes, by name."""
        places, end = {}, 0
        for name, shape in self.shapes.items():
            places[name] = end
            end = -(-(end + _ITEM_BYTES * math.prod(shape)) // _ALIGNMENT) * _ALIGNMENT
        return places

    @property
    def num_bytes(self) -> int:
        """Of all of it."""
        return self.offsets[WEIGHT_SUMS] + _ITEM_BYTES * self.num_rows

    def read(
        self,
        array: Callable[[int, tuple[int, ...], DTypeLike], NDArray[np.generic]],
        fetch: Callable[[int, int], Logits],
    ) -> ReducedLogits:
        """What the host was given.

        Args:
            array: Gives the host's bytes from an offset on as an array.
            fetch: As in the result.
        """
        shapes, offsets = self.shapes, self.offsets
        best, tokens, sums = (
            array(offsets[name], shapes[name], dtype)
            for name, dtype in zip(REDUCED, (np.float32, np.int32, np.float32), strict=True)
        )
        return ReducedLogits(
            cast(NDArray[np.float32], best),
            cast(NDArray[np.int32], tokens),
            cast(NDArray[np.float32], sums),
            fetch,
        )
