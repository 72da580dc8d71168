"""Draws a token from one row of logits: temperature, top_k, top_p, min_p, then the choice.

A row is cut before anything is sorted: whatever is drawn costs a pass or two over the vocabulary.
"""

from math import log
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .largest import largest
from .settings import SamplingSettings

__all__ = [
    "GREEDY_TEMPERATURE",
    "Kept",
    "draw",
    "keep_by_share",
    "keep_first",
    "least_of_share",
    "weigh",
]

Real = TypeVar("Real", np.float32, np.float64)
Weights: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

# Below it a difference of 1e-3 between logits is a factor of e**100: the most likely token.
GREEDY_TEMPERATURE = 1e-5
_NUCLEUS_SIZES = (64, 512)  # most likely tokens that are tried first for top_p
_NUM_LEVELS, _LEVELS_PER_E = 2048, 64  # of weights, down to e**-32
_GROUP = 256  # weights that are summed before the sums are accumulated


class Kept(NamedTuple):
    """Tokens of which one is drawn, and their weights; in the order that decides which."""

    ids: NDArray[np.int64]
    weights: Weights

    def draw(self, uniform: float) -> int:
        """The token where `uniform`, 0 to below 1, falls in the distribution."""
        return int(self.ids[_place(self.weights, uniform)])


def draw(row: NDArray[np.float32], best: float, settings: SamplingSettings, uniform: float) -> int:
    """Draws a token.

    Args:
        row: Logits `[vocab]`; minus infinity for what must not come. Not changed.
        best: Their maximum, finite.
        settings: A temperature of at least `GREEDY_TEMPERATURE`.
        uniform: A random number, 0 to below 1. The token is where it falls in the distribution.
    """
    if settings.top_k:
        ids = largest(row, settings.top_k)
        weights = weigh(row[ids].astype(np.float64), best, settings.temperature)
        return keep_first(Kept(ids, weights), settings, float(weights.sum())).draw(uniform)
    if settings.top_p < 1:
        return _keep_nucleus(row, best, settings).draw(uniform)
    if settings.min_p > 0:
        ids = np.flatnonzero(row >= least_of_share(best, settings))
        return keep_by_share(ids, row[ids], best, settings).draw(uniform)
    return _place(weigh(row, best, settings.temperature), uniform)


def _keep_nucleus(row: NDArray[np.float32], best: float, settings: SamplingSettings) -> Kept:
    """The most likely tokens that reach `top_p` (Holtzman et al. 2020).

    Usually these are few, and found among some of the most likely. Where they are not, only those
    about the border are sorted.
    """
    temperature = settings.temperature
    weights = weigh(row, best, temperature)
    total = float(weights.sum(dtype=np.float64))
    for size in _NUCLEUS_SIZES:
        ids = largest(row, size)
        most = weigh(row[ids].astype(np.float64), best, temperature)
        is_enough = most.sum() >= settings.top_p * total or most[-1] < settings.min_p
        if is_enough or len(ids) < size:
            return keep_first(Kept(ids, most), settings, total)
    # Levels of equal ratio of weights; the last one takes all that is left.
    ratios = (np.float32(best) - row) / np.float32(temperature) * np.float32(_LEVELS_PER_E)
    levels = np.minimum(ratios, np.float32(_NUM_LEVELS - 1)).astype(np.int64)
    reached = np.cumsum(np.bincount(levels, weights=weights, minlength=_NUM_LEVELS))
    border = min(int(np.searchsorted(reached, settings.top_p * total)), _NUM_LEVELS - 1)
    above = np.flatnonzero(levels < border)
    at = np.flatnonzero(levels == border)
    at = at[np.argsort(-row[at], kind="stable")]
    missing = settings.top_p * total - (reached[border - 1] if border else 0.0)
    num_at = int(np.searchsorted(np.cumsum(weights[at], dtype=np.float64), missing)) + 1
    ids = np.concatenate([above, at[:num_at]])
    ids = ids[weights[ids] >= settings.min_p]
    return Kept(ids, weights[ids])


def keep_first(likely: Kept, settings: SamplingSettings, total: float) -> Kept:
    """Those of the most likely tokens, best first, that top_p and min_p leave.

    Args:
        likely: The most likely ones.
        settings: Of the sequence.
        total: Of the weights of all tokens that top_p is a share of.
    """
    ids, weights = likely
    num_kept = len(weights)
    if settings.top_p < 1:
        reached = np.searchsorted(np.cumsum(weights), settings.top_p * total)
        num_kept = min(num_kept, int(reached) + 1)
    if settings.min_p > 0:
        num_kept = min(num_kept, int(np.count_nonzero(weights >= settings.min_p)))
    return Kept(ids[:num_kept], weights[:num_kept])


def least_of_share(best: float, settings: SamplingSettings) -> float:
    """A logit that all which min_p leaves reach, rounded down a little."""
    return best + settings.temperature * log(settings.min_p) - 1e-3


def keep_by_share(
    ids: NDArray[np.int64], values: NDArray[np.float32], best: float, settings: SamplingSettings
) -> Kept:
    """What min_p leaves of tokens, ascending, that have all the logits of `least_of_share`."""
    weights = weigh(values.astype(np.float64), best, settings.temperature)
    is_kept = weights >= settings.min_p
    return Kept(ids[is_kept], weights[is_kept])


def weigh(values: NDArray[Real], best: float, temperature: float) -> NDArray[Real]:
    """Probabilities relative to the most likely token's, in the precision of the values."""
    number = values.dtype.type
    weights: NDArray[Real] = np.exp((values - number(best)) / number(temperature))
    return weights


def _place(weights: Weights, uniform: float) -> int:
    """Where `uniform` falls among weights laid end to end; never on a weight of 0.

    Accumulating is slow where summing is not, so that groups are summed, and accumulated only
    within the one that is hit.
    """
    num_groups = len(weights) // _GROUP
    if num_groups < 4:
        sums = np.cumsum(weights, dtype=np.float64)
        return _first_beyond(sums, uniform * float(sums[-1]))
    split = num_groups * _GROUP
    groups = weights[:split].reshape(num_groups, _GROUP).sum(axis=1, dtype=np.float64)
    ends = np.cumsum(np.append(groups, weights[split:].sum(dtype=np.float64)))
    group = _first_beyond(ends, uniform * float(ends[-1]))
    before = float(ends[group - 1]) if group else 0.0
    within = np.cumsum(weights[group * _GROUP : (group + 1) * _GROUP], dtype=np.float64)
    return group * _GROUP + _first_beyond(within, max(uniform * float(ends[-1]) - before, 0.0))


def _first_beyond(sums: NDArray[np.float64], target: float) -> int:
    """The first of ascending sums above `target`; where rounding left none, the last to rise."""
    place = int(np.searchsorted(sums, target, side="right"))
    return place if place < len(sums) else int(np.searchsorted(sums, sums[-1]))
