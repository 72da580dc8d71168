"""Logits to scores, and the best labels of them."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.base import Logits

__all__ = ["Activation", "Scored", "best_labels", "default_activation", "scores"]

Activation = Literal["softmax", "sigmoid", "none"]


class Scored(NamedTuple):
    """A label, by its position in the model's list, and its score."""

    label: int
    score: float


def default_activation(problem: str) -> Activation:
    """What transformers' pipelines apply to a model of this problem type.

    The manifest says "multi_label" of a model with one label too, unless it states regression.
    """
    by_problem: dict[str, Activation] = {"single_label": "softmax", "multi_label": "sigmoid"}
    return by_problem.get(problem, "none")


def scores(logits: Logits, activation: Activation) -> NDArray[np.float64]:
    """Scores `[rows, labels]` of logits `[rows, labels]`, computed in fp64."""
    values = logits.astype(np.float64)
    if activation == "softmax":
        values -= values.max(axis=-1, keepdims=True)  # the largest exponent is 0: no overflow
        np.exp(values, out=values)
        values /= values.sum(axis=-1, keepdims=True)
    elif activation == "sigmoid":
        values = 0.5 * (1 + np.tanh(0.5 * values))  # equals 1 / (1 + exp(-x)), without overflow
    return values


def best_labels(row: NDArray[np.float64], top_k: int | None) -> list[Scored]:
    """The labels of one row of scores, best first; equal scores by index; at most `top_k`."""
    values = row.tolist()
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    return [Scored(label, values[label]) for label in order[:top_k]]
