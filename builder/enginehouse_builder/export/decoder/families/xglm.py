"""XGLM: attention as usual, computed in the module's forward."""

from typing import cast

from torch import Tensor, nn
from transformers.models.xglm.modeling_xglm import XGLMAttention

from .base import LayerAttention, Replacement

__all__ = ["adapt"]


def adapt(module: nn.Module, attention: LayerAttention, layer: int) -> Replacement:
    """Replaces the module's forward."""
    own = cast(XGLMAttention, module)

    def forward(
        hidden_states: Tensor, attention_mask: Tensor | None, **unused: object
    ) -> tuple[Tensor, None]:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (own.num_heads, own.head_dim)).transpose(1, 2)
            for projection in (own.q_proj, own.k_proj, own.v_proj)
        )
        key, value = attention.update(key, value, layer)
        output, _ = attention.attend(own, query, key, value, attention_mask, scaling=own.scaling)
        return own.out_proj(output.flatten(2)), None

    return Replacement("forward", forward)
