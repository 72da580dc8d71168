"""RoFormer: its code counts positions by itself, from what its cache holds.

Here the table of rotations gives those of each token's own place, and the module of attention
rotates by them.
"""

from typing import cast

from torch import Tensor, nn
from transformers.models.roformer.modeling_roformer import (
    RoFormerSelfAttention,
    RoFormerSinusoidalPositionalEmbedding,
)

from .base import LayerAttention, Replacement

__all__ = ["adapt", "adapt_table"]


def adapt_table(module: nn.Module, attention: LayerAttention, layer: int) -> Replacement:
    """Replaces the rows of the first places by those of the tokens' own, `[batch, length, dim]`."""
    own = cast(RoFormerSinusoidalPositionalEmbedding, module)

    def forward(*unused: object) -> Tensor:
        return nn.functional.embedding(attention.positions, own.weight)

    return Replacement("forward", forward)


def adapt(module: nn.Module, attention: LayerAttention, layer: int) -> Replacement:
    """Replaces the module's forward."""
    own = cast(RoFormerSelfAttention, module)
    heads = (own.num_attention_heads, own.attention_head_size)

    def forward(
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        sinusoidal_pos: Tensor,
        **unused: object,
    ) -> tuple[Tensor, None]:
        table = sinusoidal_pos[0, 0].unsqueeze(1)  # [batch, 1, length, dim]; [1, 1, ...] before
        query, key, value = (
            project(hidden_states).unflatten(-1, heads).transpose(1, 2)
            for project in (own.query, own.key, own.value)
        )
        rotated = (query, key, value) if own.rotary_value else (query, key)
        query, key, *rest = own.apply_rotary_position_embeddings(table, *rotated)
        key, value = attention.update(key, rest[0] if rest else value, layer)
        output, _ = attention.attend(own, query, key, value, attention_mask)
        return output.flatten(2), None

    return Replacement("forward", forward)
