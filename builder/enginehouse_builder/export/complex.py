"""Rotation by complex numbers, written so that the exporter can say it in real ones.

The exporter carries a complex number as a pair of real ones, and knows most of what is done to
them. What it does not know is said here by something that it does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ExportableComplex"]


class ExportableComplex(TorchFunctionMode):
    """Within it a complex tensor gets a new dimension by being stacked alone: the same numbers."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Calls `func`, or what stands in for it."""
        named = dict(kwargs or {})
        first = args[0] if args else None
        is_added = func in (torch.unsqueeze, Tensor.unsqueeze)
        if is_added and isinstance(first, Tensor) and first.is_complex():
            return torch.stack([first], cast(int, named.get("dim", args[-1])))
        return func(*args, **named)
