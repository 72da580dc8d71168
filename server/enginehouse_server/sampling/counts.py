"""How often a sequence has each of its tokens, kept as arrays that grow with it."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenCounts"]


class TokenCounts:
    """Counts of distinct tokens. Adding one costs the same however many there are."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)
        for token in tokens:
            self.add(token)

    @property
    def ids(self) -> NDArray[np.int64]:
        """The distinct tokens `[n]`, in the order they were first added."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of `ids` was added, `[n]`."""
        return self._counts[: len(self._places)]

    def add(self, token: int) -> None:
        """Counts a token."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1
