"""What the activations of layers are on sample texts: their greatest values, and some of them.

The fp32 graph runs on the samples, in padded batches; what padding tokens give is left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.base import Shape, TokenRow

__all__ = ["Activation", "ActivationSource", "collect"]

_MAX_BATCH_TOKENS = 512
_KEPT_ROWS = 512  # token vectors kept of each activation


class ActivationSource(Protocol):
    """Where activations are read from."""

    def read(self, rows: Sequence[TokenRow], shape: Shape) -> Mapping[str, NDArray[np.float32]]:
        """The activations of a batch, by name; valid until the next call."""
        ...


class Activation(NamedTuple):
    """What a layer was given.

    Attributes:
        max_abs: Greatest absolute value of each channel, `[in]`.
        rows: Some of the vectors, `[rows, in]`.
    """

    max_abs: NDArray[np.float32]
    rows: NDArray[np.float32]


def collect(source: ActivationSource, rows: Sequence[TokenRow]) -> dict[str, Activation]:
    """Activations that are computed for every token, by name; those of whole texts are not in it.

    The same samples give the same result: rows are kept at a fixed stride.
    """
    stride = max(1, sum(len(row.ids) for row in rows) // _KEPT_ROWS)
    highest: dict[str, NDArray[np.float32]] = {}
    kept: dict[str, list[NDArray[np.float32]]] = {}
    for batch, shape in _batches(rows):
        is_token = np.arange(shape.length) < np.array([[len(row.ids)] for row in batch])
        for name, array in source.read(batch, shape).items():
            vectors = array.reshape(-1, array.shape[-1])
            if len(vectors) != shape.num_tokens:
                continue
            vectors = vectors[is_token.ravel()]
            most: NDArray[np.float32] = np.abs(vectors).max(axis=0)
            highest[name] = np.maximum(highest[name], most) if name in highest else most
            kept.setdefault(name, []).append(vectors[::stride].copy())
    return {n: Activation(highest[n], np.concatenate(kept[n])) for n in highest}


def _batches(rows: Sequence[TokenRow]) -> Iterator[tuple[list[TokenRow], Shape]]:
    """Rows of like length together, so that little is padded; always at least two tokens long."""
    batch: list[TokenRow] = []
    length = 2
    for row in sorted(rows, key=lambda row: len(row.ids)):
        longest = max(length, len(row.ids))
        if batch and longest * (len(batch) + 1) > _MAX_BATCH_TOKENS:
            yield batch, Shape(len(batch), length)
            batch = []
        batch.append(row)
        length = longest
    if batch:
        yield batch, Shape(len(batch), length)
