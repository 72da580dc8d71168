"""Where transformers lets go of its own attention and cache."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Never

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    LinearAttentionCacheLayerMixin,
)
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export.loading import quiet

from .masks import MaskFunction

__all__ = ["Attend", "ForeignCache", "MakeMask", "check_extras", "head_rows", "plugged"]

_NAME = "enginehouse"

Attended = tuple[Tensor, None]
Attend = Callable[..., Attended]
MakeMask = Callable[[MaskFunction], Tensor | None]

# What models hand to attention that changes nothing here.
_HARMLESS = frozenset({"dropout", "position_ids", "cache_position", "use_cache", "is_causal"})
_KNOWN_EXTRAS = {
    "softcap": "soft-caps its attention",
    "s_aux": "has attention sinks",
    "position_bias": "adds a position bias to its attention",
}


class _NoLayers(list[CacheLayerMixin | LinearAttentionCacheLayerMixin | DummyLayer]):
    """Refuses a model that looks for more in its cache than `update` and positions."""

    def __getitem__(self, index: object) -> Never:
        raise UnsupportedModelError(
            "it caches more than keys and values: a sparse index, or states of another kind"
        )


class ForeignCache(Cache):
    """A cache that transformers writes to and reads from, and need know nothing more of.

    Attributes:
        layer: The layer that was written last; its attention comes next.
    """

    def __init__(self) -> None:
        super().__init__(layers=_NoLayers())
        self.layer = -1

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Takes new keys and values and gives those that attention is to see."""
        self.layer = layer_idx
        return self.write(key_states, value_states)

    def write(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The same, of the layer just set."""
        raise NotImplementedError

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are given, not counted."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Masks are not built from it."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Masks are not built from them."""
        return query_length, 0


@contextmanager
def plugged(model: PreTrainedModel, attend: Attend, make_mask: MakeMask) -> Iterator[None]:
    """Within it the model computes its attention by `attend` and its masks by `make_mask`.

    Raises:
        UnsupportedModelError: transformers has no way in to this model's attention.
    """

    def mask(*_: object, mask_function: MaskFunction, **__: object) -> Tensor | None:
        return make_mask(mask_function)

    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, mask)
    try:
        with quiet():
            model.set_attn_implementation(_NAME)
    except Exception as error:  # models refuse it in many ways
        raise UnsupportedModelError(
            "its attention is computed in its own way, which transformers does not let replace"
        ) from error
    try:
        yield
    finally:
        model.set_attn_implementation("eager")
        AttentionInterface.register(_NAME, _unplugged)
        AttentionMaskInterface.register(_NAME, _unplugged)


@contextmanager
def head_rows(model: PreTrainedModel, rows: Callable[[], Tensor]) -> Iterator[list[int]]:
    """Within it only some tokens reach the model's head: logits are `[1, rows, vocab]`.

    Whatever the model does to them after the head stays its own.

    Args:
        model: Its head is what `get_output_embeddings` says.
        rows: Indices of tokens in `[batch * length]`, row-major, asked for at each call.

    Yields:
        The number of tokens that came to the head, a call each.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise UnsupportedModelError("it has no head that gives logits of the next token")
    came: list[int] = []

    def choose(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        came.append(hidden.dim())
        flat = hidden.reshape(-1, hidden.shape[-1])
        return (torch.index_select(flat, 0, rows())[None], *args[1:])

    hook = head.register_forward_pre_hook(choose)
    try:
        yield came
    finally:
        hook.remove()


def check_extras(extras: Mapping[str, object]) -> None:
    """Refuses what a model hands to its attention that is not known to change nothing.

    Raises:
        UnsupportedModelError: Such a thing is there; it is named.
    """
    for name, value in extras.items():
        if name in _HARMLESS or value is None or value is False:
            continue
        does = _KNOWN_EXTRAS.get(name, f"computes its attention with {name!r}")
        raise UnsupportedModelError(f"it {does}, which this version cannot convert")


def _unplugged(*_: object, **__: object) -> Attended:
    raise AssertionError("the model is used outside of its export")
