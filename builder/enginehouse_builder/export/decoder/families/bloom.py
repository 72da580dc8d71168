"""BLOOM: queries, keys and values from one product, and ALiBi."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor

from .alibi import slopes_of
from .base import LayerAttention, Replacement

__all__ = ["adapt"]

_POSITIONS = 4096  # of keys, over which the bias is looked at; the model knows no limit


def adapt(module: nn.Module, attention: LayerAttention, layer: int) -> Replacement:
    """Replaces the module's forward, which adds the residual too."""
    own = cast(BloomAttention, module)
    everything = torch.ones(1, _POSITIONS, dtype=torch.long)
    slopes = slopes_of(build_alibi_tensor(everything, own.num_heads, torch.float32)[:, 0])

    def forward(
        hidden_states: Tensor,
        residual: Tensor,
        *,
        attention_mask: Tensor | None,
        **unused: object,
    ) -> tuple[Tensor, None]:
        query, key, value = own._reshape(own.query_key_value(hidden_states))
        key, value = attention.update(key, value, layer)
        output, _ = attention.attend(
            own, query, key, value, attention_mask, scaling=own.inv_norm_factor, slopes=slopes
        )
        return own.dense(output.flatten(2)) + residual, None

    return Replacement("forward", forward)
