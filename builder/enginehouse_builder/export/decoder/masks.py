"""Which tokens a layer sees, read from the mask that transformers builds for it."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["MaskFunction", "window_of"]

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor | bool]

_FAR = 1 << 20  # a position beyond the length of any sequence that is served
_QUERIES = (0, 1, 7, 1021, _FAR, _FAR + 1, _FAR + 4099)
_AFTER = 8  # positions after the query that must not be seen


def window_of(mask_function: MaskFunction) -> int | None:
    """How many positions, itself included, a token sees.

    Args:
        mask_function: As in transformers: of batch, head, query and key to whether it is seen.

    Returns:
        The window, 0 for all before it, or None if it is neither: both ways, in chunks, or with
        holes.
    """
    windows = {_seen_by(mask_function, query) for query in _QUERIES}
    bounded = {window for window in windows if window != 0}
    if None in bounded or len(bounded) > 1:
        return None
    if not bounded:
        return 0
    (window,) = bounded
    # A query with fewer tokens before it than the window sees all of them.
    whole = {query for query in _QUERIES if _seen_by(mask_function, query) == 0}
    return window if whole == {query for query in _QUERIES if query < (window or 0)} else None


def _seen_by(mask_function: MaskFunction, query: int) -> int | None:
    """How many positions up to itself are seen, 0 for all, None if not just its last ones."""
    first = torch.tensor(0)
    keys = torch.arange(query + 1 + _AFTER)
    seen = torch.as_tensor(mask_function(first, first, torch.tensor(query), keys))
    seen = seen.expand(keys.shape)
    until, after = seen[: query + 1], seen[query + 1 :]
    count = int(until.sum())
    if bool(after.any()) or count == 0 or not bool(until[-count:].all()):
        return None
    return 0 if count == query + 1 else count
