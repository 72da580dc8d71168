"""Names of what a cache holds: a page of tokens together with all that came before it.

Two sequences that have a name in common agree in every token up to the end of that page, so that
its keys and values are the same. Names chain SHA-256: nobody can make a prompt that is taken for
another's.
"""

from array import array
from collections.abc import Sequence
from hashlib import sha256

__all__ = ["PageNames"]


class PageNames:
    """Names of the full pages of one growing sequence.

    Attributes:
        page_size: Tokens of a page.
        names: One a page that is full, as far as `extend` was told.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.names: list[bytes] = []

    def extend(self, tokens: Sequence[int]) -> list[bytes]:
        """Names the pages that `tokens`, the whole sequence, has filled; gives all names."""
        names, size = self.names, self.page_size
        for start in range(len(names) * size, len(tokens) - size + 1, size):
            page = array("q", tokens[start : start + size]).tobytes()
            names.append(sha256((names[-1] if names else b"") + page).digest())
        return names
