"""GPT-J: a part of each head is rotated, by a table that its own code copies for every text.

A graph whose batch is tokens would copy it for every token, so the rows are taken from it here.
"""

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.gptj.modeling_gptj import GPTJAttention, apply_rotary_pos_emb

from .base import LayerAttention, Replacement

__all__ = ["adapt"]


def adapt(module: nn.Module, attention: LayerAttention, layer: int) -> Replacement:
    """Replaces the module's forward."""
    own = cast(GPTJAttention, module)
    heads = (own.num_attention_heads, own.head_dim)
    num_rotated = own.rotary_dim or own.head_dim

    def forward(
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        **unused: object,
    ) -> tuple[Tensor, None]:
        sin, cos = own.embed_positions[position_ids].chunk(2, dim=-1)

        def rotated(states: Tensor) -> Tensor:
            first, rest = states[..., :num_rotated], states[..., num_rotated:]
            turned = torch.cat([apply_rotary_pos_emb(first, sin, cos), rest], dim=-1)
            return turned.transpose(1, 2)

        query = rotated(own.q_proj(hidden_states).unflatten(-1, heads))
        key = rotated(own.k_proj(hidden_states).unflatten(-1, heads))
        value = own.v_proj(hidden_states).unflatten(-1, heads).transpose(1, 2)
        key, value = attention.update(key, value, layer)
        output, _ = attention.attend(
            own, query, key, value, attention_mask, scaling=1 / own.scale_attn
        )
        return own.out_proj(output.flatten(2)), None

    return Replacement("forward", forward)
