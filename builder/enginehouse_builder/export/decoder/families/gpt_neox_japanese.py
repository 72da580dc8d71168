"""GPT-NeoX Japanese: its module splits, rotates and caches; the product over keys is replaced."""

from typing import cast

from torch import Tensor, nn
from transformers.models.gpt_neox_japanese.modeling_gpt_neox_japanese import (
    GPTNeoXJapaneseAttention,
)

from .base import LayerAttention, Replacement

__all__ = ["adapt"]


def adapt(module: nn.Module, attention: LayerAttention, layer: int) -> Replacement:
    """Replaces what comes after the cache."""
    own = cast(GPTNeoXJapaneseAttention, module)

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        output, _ = attention.attend(
            own, query, key, value, attention_mask, scaling=1 / own.norm_factor
        )
        return output.transpose(1, 2), None

    return Replacement("_attn", attend)
