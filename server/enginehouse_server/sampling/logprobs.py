"""How likely tokens were, by log-softmax."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.base import Logits

from .largest import largest

__all__ = ["TokenLogprobs", "log_normalizer", "most_likely", "score_tokens"]


class TokenLogprobs(NamedTuple):
    """How likely a token was, by the logits after penalties and bias, before temperature.

    Attributes:
        logprob: Of the token itself, natural logarithm.
        top: The most likely tokens and theirs, best first, as many as were asked for.
    """

    logprob: float
    top: Sequence[tuple[int, float]]


def log_normalizer(row: NDArray[np.float32], best: float) -> float:
    """What taken off a row `[vocab]` makes log-probabilities of it; `best` is its maximum."""
    return best + float(np.log(np.exp(row - np.float32(best)).sum(dtype=np.float64)))


def most_likely(
    row: NDArray[np.float32], normalizer: float, num_tokens: int
) -> list[tuple[int, float]]:
    """The most likely tokens of a row `[vocab]` and their log-probabilities, best first."""
    if not num_tokens:
        return []
    ids = largest(row, num_tokens)
    return list(zip(ids.tolist(), (row[ids].astype(np.float64) - normalizer).tolist(), strict=True))


def score_tokens(logits: Logits, tokens: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """How likely each of `tokens` was by its row of logits.

    Args:
        logits: `[len(tokens), vocab]`, fp32; each row is what came before its token.
        tokens: Token ids.
        num_top: How many of the most likely tokens to report with each.
    """
    scored = []
    for row, token in zip(logits, tokens, strict=True):
        normalizer = log_normalizer(row, float(row.max()))
        top = most_likely(row, normalizer, num_top)
        scored.append(TokenLogprobs(float(row[token]) - normalizer, top))
    return scored
