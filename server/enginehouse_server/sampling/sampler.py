"""Chooses the next tokens of the sequences of one step from their logits.

Order: penalties and bias, banned tokens, temperature, top_k, top_p, min_p, then the choice.
Log-probabilities are taken after penalties and bias, before anything is banned.

Rows are treated one after the other, the vocabulary as vectors: a row of the largest vocabularies
fits a processor's cache where all rows of a step do not, and what a row comes to must not depend
on which others are beside it.
"""

import logging
from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.base import Logits
from enginehouse_server.errors import DeviceError, EnginehouseError, InvalidRequestError

from .choice import draw
from .logprobs import TokenLogprobs, log_normalizer, most_likely
from .state import SamplingState

__all__ = ["Choice", "choose", "failed"]

_log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """The next token of one sequence, or why there is none.

    Attributes:
        token: Its id; -1 if there is an error.
        logprobs: If the settings ask for them.
        error: Ends this sequence alone.
    """

    token: int
    logprobs: TokenLogprobs | None = None
    error: EnginehouseError | None = None


def choose(logits: Logits, states: Sequence[SamplingState]) -> list[Choice]:
    """Chooses a token for each row. The states are not told: `append` what is kept.

    What goes wrong with one row is the error of its choice, and does not reach the others.

    Args:
        logits: `[len(states), vocab]`, fp32; overwritten.
        states: Of the sequences, in the order of the rows.
    """
    faults = [_penalise(row, state) for row, state in zip(logits, states, strict=True)]
    # The first of equal maxima; and of a row with NaN in it, the NaN.
    tops = logits.argmax(axis=1)
    bests = logits[np.arange(len(logits)), tops]
    return [
        fault or _choose_safely(row, int(top), float(best), state)
        for fault, row, top, best, state in zip(faults, logits, tops, bests, states, strict=True)
    ]


def _penalise(row: NDArray[np.float32], state: SamplingState) -> Choice | None:
    """Applies penalties and bias; gives a choice only if that failed."""
    try:
        state.penalise(row)
    except Exception as error:
        return failed(error)
    return None


def _choose_safely(row: NDArray[np.float32], top: int, best: float, state: SamplingState) -> Choice:
    try:
        return _choose_one(row, top, best, state)
    except Exception as error:
        return failed(error)


def failed(error: Exception) -> Choice:
    """The choice of a row that this happened to."""
    if isinstance(error, EnginehouseError):
        return Choice(-1, error=error)
    _log.error("a token could not be chosen", exc_info=error)
    return Choice(-1, error=DeviceError(f"a token could not be chosen: {error}"))


def _choose_one(row: NDArray[np.float32], top: int, best: float, state: SamplingState) -> Choice:
    if not isfinite(best):
        return Choice(-1, error=DeviceError(f"the engine's largest logit is {best}, not a number"))
    num_logprobs = state.settings.num_logprobs
    normalizer, likely = 0.0, []
    if num_logprobs is not None:
        normalizer = log_normalizer(row, best)
        likely = most_likely(row, normalizer, num_logprobs)
    if state.ban(row):
        top = int(row.argmax())
        best = float(row[top])
        if best == -np.inf:
            return Choice(-1, error=InvalidRequestError(_NOTHING_LEFT))
    token = top if state.is_greedy else draw(row, best, state.settings, state.next_uniform())
    if num_logprobs is None:
        return Choice(token)
    return Choice(token, TokenLogprobs(float(row[token]) - normalizer, likely))


_NOTHING_LEFT = (
    "no token is left to choose: bad_words, min_new_tokens and the structure exclude all of them "
    "together; relax one"
)
