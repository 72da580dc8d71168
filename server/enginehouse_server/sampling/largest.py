"""The largest values of a row, without sorting it."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["largest"]

_GROUP = 64  # values of which one maximum is taken


def largest(row: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Where the `k` largest values of a row are, best first; of equal ones the lowest id first.

    Values of minus infinity are never among them, so fewer may come back.

    Args:
        row: `[n]`, without NaN.
        k: How many, at least one.
    """
    bound = _lower_bound(row, k)
    ids = np.flatnonzero(row >= bound if bound > -np.inf else row > -np.inf)
    values = row[ids]
    if len(ids) > 4 * k + _GROUP:
        bound = float(np.partition(values, len(ids) - k)[len(ids) - k])
        above, level = ids[values > bound], ids[values == bound]
        ids = np.sort(np.concatenate([above, level[: k - len(above)]]))
        values = row[ids]
    # The ids ascend and the sort is stable: equal values stay in the order of their ids.
    return ids[np.argsort(-values, kind="stable")[:k]]


def _lower_bound(row: NDArray[np.float32], k: int) -> float:
    """A value that at least `k` of the row reach.

    That is the k-th largest of the maxima of disjoint groups. It is close to the k-th largest
    value and costs one pass over the row, with which a partition of all of it is ten times slower.
    """
    num_groups = len(row) // _GROUP
    if num_groups < 4 * k:
        return float(np.partition(row, len(row) - k)[len(row) - k] if k < len(row) else row.min())
    maxima = row[: num_groups * _GROUP].reshape(_GROUP, num_groups).max(axis=0)
    return float(np.partition(maxima, num_groups - k)[num_groups - k])
