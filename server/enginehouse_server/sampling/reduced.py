"""Chooses tokens from what a device has reduced logits to, where that gives the very same ones.

A device gives the largest logits of a row. Those above the least of them are surely the largest,
whichever of equal ones it left out, and are put in the order that all else has: best first, of
equal ones the lowest id first. Where they do not decide what is drawn, all logits of the row are
fetched, and the token is chosen from these. No random number is taken before that is known.

Log-probabilities are as exact as those of whole rows, but for the rounding of one sum in fp32.
"""

from collections.abc import Sequence
from math import exp, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.decoder import ReducedLogits
from enginehouse_server.errors import DeviceLostError

from .choice import Kept, keep_by_share, keep_first, least_of_share, weigh
from .logprobs import TokenLogprobs
from .sampler import Choice, choose, failed
from .settings import SamplingSettings
from .state import SamplingState

__all__ = ["choose_reduced"]

# Share of a sum of weights: far more than fp32 on any device and the host's own can be apart. A
# nucleus whose border lies within it is not drawn from.
_SUM_ERROR = 1e-4


def choose_reduced(
    logits: ReducedLogits, rows: Sequence[int], states: Sequence[SamplingState]
) -> list[Choice]:
    """Chooses a token for some rows of a step, as `sampler.choose` would from all logits.

    Args:
        logits: Of the step.
        rows: Which of its rows.
        states: Of the sequences, in the order of `rows`.
    """
    if not rows:
        return []
    chosen = list(rows)
    values, ids = logits.best[chosen], logits.tokens[chosen].astype(np.int64)
    best = values.max(axis=1, keepdims=True)
    is_best = values == best
    firsts = np.where(is_best, ids, np.iinfo(np.int64).max).min(axis=1)
    # Otherwise one that is not among them may be as large.
    is_known = np.isfinite(logits.weight_sums[chosen]) & ~is_best.all(axis=1)
    choices = []
    for i, (row, state) in enumerate(zip(rows, states, strict=True)):
        choice: Choice | None = None
        try:
            if state.takes_reduced and is_known[i]:
                choice = _choose_one(logits, row, int(firsts[i]), state)
            if choice is None:
                [choice] = choose(logits.fetch(row, row + 1), [state])
        except DeviceLostError:
            raise  # no sequence goes on
        except Exception as error:
            choice = failed(error)
        choices.append(choice)
    return choices


class _Row(NamedTuple):
    """What is known of a row.

    Attributes:
        values: The largest logits, descending.
        ids: Their tokens, of equal values ascending.
        bound: No other logit is larger.
        best: The largest of all.
        weight_sum: Over all tokens, of `exp(logit - best)`.
    """

    values: NDArray[np.float32]
    ids: NDArray[np.int64]
    bound: float
    best: float
    weight_sum: float

    @classmethod
    def of(cls, logits: ReducedLogits, row: int) -> "_Row":
        values, ids = logits.best[row], logits.tokens[row].astype(np.int64)
        bound = values.min()
        order = np.lexsort((ids, -values))[: int(np.count_nonzero(values > bound))]
        best = float(values[order[0]])
        weight_sum = float(logits.weight_sums[row]) * exp(float(values[0]) - best)
        return cls(values[order], ids[order], float(bound), best, weight_sum)

    def has(self, count: int) -> bool:
        """Whether so many of the largest are known, or all that are not minus infinity."""
        return count <= len(self.ids) or self.bound == -np.inf

    def without(self, banned: NDArray[np.int64]) -> "_Row | None":
        """What is known if some tokens must not come; None if that is not even the largest."""
        is_left = ~np.isin(self.ids, banned)
        if not is_left.any():
            return None
        values, ids = self.values[is_left], self.ids[is_left]
        return self._replace(values=values, ids=ids, best=float(values[0]))


def _choose_one(
    logits: ReducedLogits, number: int, first: int, state: SamplingState
) -> Choice | None:
    """The choice, if what is known of the row decides it; `first` is the largest's token."""
    settings, banned = state.settings, state.banned()
    if settings.num_logprobs is None and state.is_greedy and not len(banned):
        return Choice(first)
    row = _Row.of(logits, number)
    if not row.has(settings.num_logprobs or 0):
        return None
    left = row.without(banned) if len(banned) else row
    if left is None:
        return None
    if state.is_greedy:
        token = int(left.ids[0])
    else:
        kept = _keep(left, settings, has_banned=bool(len(banned)))
        if kept is None:
            return None
        token = kept.draw(state.next_uniform())
    if settings.num_logprobs is None:
        return Choice(token)
    return Choice(token, _logprobs(row, token, settings.num_logprobs))


def _logprobs(row: _Row, token: int, num_top: int) -> TokenLogprobs:
    found = row.values.astype(np.float64) - (row.best + log(row.weight_sum))
    [own] = found[row.ids == token].tolist()
    return TokenLogprobs(
        own, list(zip(row.ids[:num_top].tolist(), found[:num_top].tolist(), strict=True))
    )


def _keep(row: _Row, settings: SamplingSettings, *, has_banned: bool) -> Kept | None:
    """The tokens to draw from, as `choice.draw` has them; None if others may be among them."""
    if settings.top_k:
        if not row.has(settings.top_k):
            return None
        ids, values = row.ids[: settings.top_k], row.values[: settings.top_k]
        weights = weigh(values.astype(np.float64), row.best, settings.temperature)
        return keep_first(Kept(ids, weights), settings, float(weights.sum()))
    if settings.top_p < 1:
        # Of banned ones that are not among the largest, the weights' sum is not known.
        return None if has_banned else _keep_nucleus(row, settings)
    least = least_of_share(row.best, settings)
    if np.float32(row.bound) >= np.float32(least):
        return None
    chosen = np.flatnonzero(row.values >= least)
    chosen = chosen[np.argsort(row.ids[chosen])]
    return keep_by_share(row.ids[chosen], row.values[chosen], row.best, settings)


def _keep_nucleus(row: _Row, settings: SamplingSettings) -> Kept | None:
    """Those that reach top_p, if they are the same for any sum of all weights that there may be."""
    temperature = settings.temperature
    weights = weigh(row.values.astype(np.float64), row.best, temperature)
    error = _SUM_ERROR * row.weight_sum
    others = row.weight_sum - float(np.exp(row.values.astype(np.float64) - row.best).sum())
    # At a lower temperature each of them, none beyond the bound, weighs less by at least so much.
    shrinking = exp((row.bound - row.best) * (1 / temperature - 1)) if temperature < 1 else 1.0
    least = float(weights.sum()) + (max(0.0, others - error) if temperature == 1 else 0.0)
    most = float(weights.sum()) + (others + error) * shrinking
    least, most = least * (1 - _SUM_ERROR), most * (1 + _SUM_ERROR)
    reaches = float(weights.sum()) >= settings.top_p * most or weights[-1] < settings.min_p
    likely = Kept(row.ids, weights)
    kept = keep_first(likely, settings, most)
    is_certain = len(keep_first(likely, settings, least).ids) == len(kept.ids)
    return kept if reaches and is_certain else None
