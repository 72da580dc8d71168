"""OpenAI GPT: its code has no cache, and no mask but the causal one in its module."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.openai.modeling_openai import Attention

from .base import LayerAttention, Replacement

__all__ = ["adapt"]


def adapt(module: nn.Module, attention: LayerAttention, layer: int) -> Replacement:
    """Replaces the product over keys, and caches before it."""
    own = cast(Attention, module)

    def attend(query: Tensor, key: Tensor, value: Tensor, *unused: object) -> list[Tensor]:
        # Keys come with their tokens last.
        key, value = attention.update(key.transpose(2, 3), value, layer)
        scaling = query.shape[-1] ** -0.5 if own.scale else 1.0
        sees_all = torch.zeros(1, 1, 1, 1)
        output, _ = attention.attend(own, query, key, value, sees_all, scaling=scaling)
        return [output.transpose(1, 2)]

    return Replacement("_attn", attend)
