"""The figures of an engine's logits beside the reference's.

Errors are judged by how far the reference's logits depart from their mean over the samples: an
engine that answers every text alike is off by at least half of that, however large its logits.
Scores of a single label come from the differences of a row's logits alone, so there each row's
mean is taken out first.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.base import Logits

from .tolerance import NEAR_TIE

__all__ = ["Comparison", "Problem", "compare", "spread_of"]

Problem = Literal["single_label", "multi_label", "regression"]


class Comparison(NamedTuple):
    """How far two sets of logits are apart.

    Attributes:
        max_abs_error: Greatest absolute difference; NaN if the engine gave one.
        mean_abs_error: Mean absolute difference.
        min_cosine: Least cosine similarity of two rows (of the whole column for one label).
        agreement: Share of decisions that are the same; None for regression.
        clear_agreement: The same of decisions that are no near ties; None for regression.
        clear_share: Share of the reference's decisions that are no near ties; None for regression.
        scale: `spread_of` the reference.
        worst: Index of the row with the greatest error.
    """

    max_abs_error: float
    mean_abs_error: float
    min_cosine: float
    agreement: float | None
    clear_agreement: float | None
    clear_share: float | None
    scale: float
    worst: int


def compare(logits: Logits, reference: Logits, problem: Problem) -> Comparison:
    """Compares logits `[rows, labels]` with the reference's."""
    errors = np.abs(logits.astype(np.float64) - reference)
    scale = spread_of(reference, problem)
    is_same, is_clear = _decisions(logits, reference, problem, NEAR_TIE * scale)
    is_decided = problem != "regression"
    return Comparison(
        max_abs_error=float(errors.max()),
        mean_abs_error=float(errors.mean()),
        min_cosine=_min_cosine(logits, reference),
        agreement=float(is_same.mean()) if is_decided else None,
        clear_agreement=_mean(is_same[is_clear]) if is_decided else None,
        clear_share=float(is_clear.mean()) if is_decided else None,
        scale=scale,
        worst=int(np.argmax(np.nan_to_num(errors, nan=np.inf).max(axis=1))),
    )


def spread_of(reference: Logits, problem: Problem) -> float:
    """Farthest departure of a logit from its mean over the rows, never quite 0.

    Args:
        reference: Logits `[rows, labels]`.
        problem: Of a single label, a row's logits count from their own mean.
    """
    logits = reference.astype(np.float64)
    if problem == "single_label":
        logits -= logits.mean(axis=1, keepdims=True)
    return max(float(np.abs(logits - logits.mean(axis=0)).max()), 1e-6)


def _mean(truths: NDArray[np.bool_]) -> float:
    return float(truths.mean()) if truths.size else 1.0


def _decisions(
    logits: Logits, reference: Logits, problem: Problem, near: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each decision is the same, and whether the reference's is clear."""
    if problem == "single_label" and reference.shape[1] > 1:
        second, first = np.sort(reference, axis=1)[:, -2:].T
        return logits.argmax(axis=1) == reference.argmax(axis=1), first - second > near
    return (logits > 0) == (reference > 0), np.abs(reference) > near


def _min_cosine(logits: Logits, reference: Logits) -> float:
    ours, theirs = logits.astype(np.float64), reference.astype(np.float64)
    if reference.shape[1] == 1:
        ours, theirs = ours.T, theirs.T
    ours = np.nan_to_num(ours, posinf=0, neginf=0)  # the error says what is no number
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-30)
    return float(cosines.min())
