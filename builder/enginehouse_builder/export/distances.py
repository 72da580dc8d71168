"""Buckets of token distances as tables.

T5, MPNet and DeBERTa sort the distance of two tokens into buckets with a logarithm that is then
rounded, and for some distances it is a whole number exactly: there a runtime whose logarithm
differs in the last bit takes the next bucket. A table of the original's own results is the same
everywhere.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["tabled_distances"]

_METHODS = ("_relative_position_bucket", "relative_position_bucket")
_FUNCTION = "make_log_bucket_position"


@contextmanager
def tabled_distances(model: nn.Module, max_tokens: int) -> Iterator[None]:
    """Within it the model looks buckets up, for rows of at most `max_tokens`.

    The tables are filled by the first call, which must not be a traced one.
    """
    for module in model.modules():
        for name in _METHODS:
            if hasattr(module, name):
                setattr(module, name, _tabled(getattr(module, name), max_tokens))
    code = sys.modules[type(model).__module__]
    original = getattr(code, _FUNCTION, None)
    if original is None:
        yield
        return
    setattr(code, _FUNCTION, _tabled(original, max_tokens))
    try:
        yield
    finally:
        setattr(code, _FUNCTION, original)


def _tabled(bucket_of: Callable[..., Tensor], max_tokens: int) -> Callable[..., Tensor]:
    tables: dict[tuple[object, ...], Tensor] = {}

    def look_up(distances: Tensor, *args: object, **kwargs: object) -> Tensor:
        key = (*args, *sorted(kwargs.items()))
        if key not in tables:
            every = torch.arange(1 - max_tokens, max_tokens, device=distances.device)
            tables[key] = bucket_of(every, *args, **kwargs)
        return tables[key][distances + (max_tokens - 1)]

    return look_up
