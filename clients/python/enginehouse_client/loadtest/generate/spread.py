"""A distribution of very many times in little memory."""

import math
from array import array

import numpy as np

from enginehouse_client.loadtest.measures import NUM_BINS
from enginehouse_client.loadtest.records import Histogram, Quantiles

__all__ = ["Spread"]

_LOWEST_S, _HIGHEST_S = 1e-6, 1e3
_RATIO = 1.005
_PER_LOG = 1 / math.log(_RATIO)
_NUM_CELLS = math.ceil(math.log(_HIGHEST_S / _LOWEST_S) * _PER_LOG) + 1


class Spread:
    """Counts times in cells, each 0.5 % wider than the one before, as HdrHistogram does.

    Percentiles are exact to 0.25 %, mean and maximum wholly. Its size does not grow: 33 KiB.
    """

    def __init__(self) -> None:
        self._cells = array("q", bytes(8 * _NUM_CELLS))
        self._num = 0
        self._sum_s = self._max_s = 0.0

    def add(self, time_s: float, num: int) -> None:
        """So many times of one length, seconds."""
        cell = int(math.log(time_s / _LOWEST_S) * _PER_LOG) if time_s > _LOWEST_S else 0
        self._cells[min(cell, _NUM_CELLS - 1)] += num
        self._num += num
        self._sum_s += time_s * num
        self._max_s = max(self._max_s, time_s)

    def quantiles_ms(self) -> Quantiles | None:
        """What is told of the times, milliseconds; None if there are none."""
        if not self._num:
            return None
        cells = np.frombuffer(self._cells, dtype=np.int64)
        ranks = np.ceil(np.array([0.5, 0.9, 0.99, 0.999]) * self._num)
        middles_ms = _LOWEST_S * 1e3 * _RATIO ** (np.searchsorted(np.cumsum(cells), ranks) + 0.5)
        p50, p90, p99, p99_9 = np.minimum(middles_ms, self._max_s * 1e3).tolist()
        mean_ms = self._sum_s / self._num * 1e3
        return Quantiles(mean_ms, p50, p90, p99, p99_9, self._max_s * 1e3)

    def histogram(self) -> Histogram | None:
        """How the times are distributed, edges evenly spaced by ratio; None if there are none."""
        if not self._num:
            return None
        cells = np.frombuffer(self._cells, dtype=np.int64)
        used = np.flatnonzero(cells)
        first, end = int(used[0]), int(used[-1]) + 1
        # Whole cells in each bin: a bin that had one more would stand out.
        width = max(1, math.ceil((end - first) / NUM_BINS))
        num_bins = math.ceil((end - first) / width)
        padded = np.zeros(num_bins * width, dtype=np.int64)
        padded[: end - first] = cells[first:end]
        edges_ms = _LOWEST_S * 1e3 * _RATIO ** (first + width * np.arange(num_bins + 1.0))
        counts = padded.reshape(num_bins, width).sum(axis=1)
        return Histogram(tuple(edges_ms.tolist()), tuple(counts.tolist()))
