"""The host buffers from which a batch is given to a runtime: filled row by row, padded."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .base import Shape, TokenRow

__all__ = ["Staging"]


class Staging:
    """Buffers for each input of the graph, reused by every batch of one lane."""

    def __init__(
        self,
        inputs: Sequence[str],
        pad_id: int,
        max_batch_tokens: int,
        allocate: Callable[[int], NDArray[np.int64]] = lambda count: np.zeros(count, np.int64),
    ) -> None:
        """Takes the buffers, one for each input, from `allocate`, which is told their size."""
        self._pad_id = pad_id
        self._buffers = {name: allocate(max_batch_tokens) for name in inputs}

    def fill(self, rows: Sequence[TokenRow], shape: Shape) -> dict[str, NDArray[np.int64]]:
        """Lays rows out as `[batch, length]` arrays, by name of the input.

        A padded row attends to its own first token: a row that attends to nothing would make
        NaN of a softmax. The arrays are valid until the next call.
        """
        arrays = {n: b[: shape.num_tokens].reshape(shape) for n, b in self._buffers.items()}
        ids, mask = arrays["input_ids"], arrays.get("attention_mask")
        types = arrays.get("token_type_ids")
        ids.fill(self._pad_id)
        if mask is not None:
            mask.fill(0)
            mask[len(rows) :, 0] = 1
        if types is not None:
            types.fill(0)
        for i, row in enumerate(rows):
            length = len(row.ids)
            ids[i, :length] = row.ids
            if mask is not None:
                mask[i, :length] = 1
            if types is not None and row.type_ids is not None:
                types[i, :length] = row.type_ids
        return arrays
