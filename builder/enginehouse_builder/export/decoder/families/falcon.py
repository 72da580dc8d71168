"""Falcon: queries, keys and values from one product; rotated, or with ALiBi.

Its ALiBi is rounded to bfloat16, so beyond some positions it is no line any more, and no slope
says what it is. It depends on the key alone, so it goes with the key, as one more channel of it
that every query takes whole: exactly what the model adds, in every precision that holds bfloat16.
"""

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.falcon.modeling_falcon import (
    FalconAttention,
    apply_rotary_pos_emb,
    build_alibi_tensor,
)

from .base import LayerAttention, Replacement

__all__ = ["adapt"]


def adapt(module: nn.Module, attention: LayerAttention, layer: int) -> Replacement:
    """Replaces the module's forward."""
    own = cast(FalconAttention, module)
    group = own.num_heads // (own.num_kv_heads or own.num_heads)
    bias = _bias_of_positions(own) if own.config.alibi else None

    def forward(
        hidden_states: Tensor,
        *,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **unused: object,
    ) -> tuple[Tensor, None]:
        split = own._split_heads(own.query_key_value(hidden_states))
        query, key, value = (states.transpose(1, 2) for states in split)
        if own.new_decoder_architecture:  # they come once for each query
            key, value = key[:, ::group], value[:, ::group]
        if bias is None:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        else:
            query, key, value = _with_bias(query, key, value, bias[position_ids])
            attention_mask = torch.zeros(1, 1, 1, 1)  # it came with the bias in it
        key, value = attention.update(key, value, layer)
        output, _ = attention.attend(
            own, query, key, value, attention_mask, scaling=own.inv_norm_factor
        )
        return own.dense(output.flatten(2)), None

    return Replacement("forward", forward)


def _bias_of_positions(own: FalconAttention) -> Tensor:
    """What is added to a score before scaling, `[positions, heads]`."""
    everything = torch.ones(1, own.max_position_embeddings, dtype=torch.long)
    return build_alibi_tensor(everything, own.num_heads, torch.float32)[:, 0].T.contiguous()


def _with_bias(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value with the bias of keys, `[batch, length, heads]`, as a channel."""
    each = (-1, query.shape[1], -1, -1)  # a bias of each head makes keys of each
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = (s.repeat_interleave(group, dim=1) for s in (key, value))
    channel = bias.transpose(1, 2)[..., None].expand(each)
    query = torch.cat([query, torch.ones_like(query[..., :1])], dim=-1)
    return query, torch.cat([key, channel], dim=-1), value
