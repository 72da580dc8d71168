"""GPT-Neo: scores are not scaled, and local layers hold the window in a mask of their own."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from enginehouse_builder.errors import UnsupportedModelError

from .base import LayerAttention, Replacement

__all__ = ["adapt"]


def adapt(module: nn.Module, attention: LayerAttention, layer: int) -> Replacement:
    """Replaces what comes after the cache."""
    own = cast(GPTNeoSelfAttention, module)
    window = _window(own.bias[0, 0])

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        output, _ = attention.attend(
            own, query, key, value, attention_mask, scaling=1.0, window=window
        )
        return output.transpose(1, 2), None

    return Replacement("_attn", attend)


def _window(seen: Tensor) -> int:
    """How many positions a token sees, by the module's mask `[positions, positions]`; 0 for all."""
    longest = int(seen[-1].sum())
    band = torch.ones_like(seen).tril().triu(1 - longest)
    if not torch.equal(seen, band):
        raise UnsupportedModelError(
            "what a token sees is neither all tokens before it nor the last so many"
        )
    return 0 if longest == len(seen) else longest
