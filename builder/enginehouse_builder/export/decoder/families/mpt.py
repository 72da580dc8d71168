"""MPT: queries, keys and values from one product, which may be clipped, and ALiBi."""

from typing import cast

from torch import Tensor, nn
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor

from .alibi import slopes_of
from .base import LayerAttention, Replacement

__all__ = ["adapt"]


def adapt(module: nn.Module, attention: LayerAttention, layer: int) -> Replacement:
    """Replaces the module's forward."""
    own = cast(MptAttention, module)
    # As its model calls it: transformers leaves alibi_bias_max of the configuration unread.
    slopes = slopes_of(build_mpt_alibi_tensor(own.n_heads, own.max_seq_length)[:, 0])

    def forward(
        hidden_states: Tensor,
        position_bias: Tensor,
        *,
        attention_mask: Tensor | None,
        **unused: object,
    ) -> tuple[Tensor, None]:
        fused = own.Wqkv(hidden_states)
        if own.clip_qkv:
            fused = fused.clamp(-own.clip_qkv, own.clip_qkv)
        query, key, value = (
            states.unflatten(-1, (own.n_heads, own.head_dim)).transpose(1, 2)
            for states in fused.chunk(3, dim=-1)
        )
        key, value = attention.update(key, value, layer)
        output, _ = attention.attend(
            own, query, key, value, attention_mask, scaling=own.softmax_scale, slopes=slopes
        )
        return own.out_proj(output.flatten(2)), None

    return Replacement("forward", forward)
