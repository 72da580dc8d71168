"""Where transformers lets go of its own attention and cache."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Never

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
from enginehouse_builder.export.limits import first_position
from enginehouse_builder.export.loading import quiet

from .families import adapted, is_adaptable
from .masks import MaskFunction

__all__ = [
    "STATES",
    "Extras",
    "ForeignCache",
    "MakeMask",
    "head_rows",
    "logits_of",
    "plugged",
    "understand",
]

_NAME = "enginehouse"

STATES = (
    "an engine keeps keys and values of tokens alone, no states (Mamba, linear attention, short "
    "convolutions) and no index; choose a model whose layers all attend"
)

Attended = tuple[Tensor, None]
MakeMask = Callable[[MaskFunction], Tensor | None]

# What models hand to attention that changes nothing here; a window is read from the mask.
_HARMLESS = frozenset(
    {"dropout", "position_ids", "cache_position", "use_cache", "is_causal", "sliding_window"}
)
_KNOWN_EXTRAS = {
    "position_bias": "adds a position bias to its attention",
}


class Extras(NamedTuple):
    """What more a model's attention does, as the operator's own inputs and attributes say it.

    Attributes:
        softcap: Bound of the scores; 0 for none.
        slopes: Of the linear bias, `[heads]`.
        sinks: Logits beside the scores, `[heads]`.
        window: That the module keeps to by itself, whatever the mask; 0 for none.
    """

    softcap: float
    slopes: Tensor | None
    sinks: Tensor | None
    window: int


class _NoLayers(list[CacheLayerMixin | LinearAttentionCacheLayerMixin | DummyLayer]):
    """Refuses a model that looks for more in its cache than `update` and positions."""

    def __getitem__(self, index: object) -> Never:
        raise UnsupportedModelError(
            "it caches more than keys and values: a sparse index, or states of another kind; "
            f"{STATES}"
        )


class ForeignCache(Cache):
    """A cache that transformers writes to and reads from, and the attention over it.

    Attributes:
        layer: The layer that was written last; its attention comes next.
        positions: Of the tokens that the model is called with, `[batch, length]`.
    """

    positions: Tensor

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

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **extras: object,
    ) -> Attended:
        """What queries `[batch, heads, length, dim]` see, `[batch, length, heads, dim]`."""
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
def plugged(model: PreTrainedModel, cache: ForeignCache, make_mask: MakeMask) -> Iterator[None]:
    """Within it the model computes its attention by the cache's and its masks by `make_mask`.

    Attention that does not go through transformers' interface is replaced where it is known how.

    Raises:
        UnsupportedModelError: transformers has no way in to this model's attention.
    """
    before, is_adapted = model.config._attn_implementation or "eager", is_adaptable(model)

    def mask(*_: object, mask_function: MaskFunction, **__: object) -> Tensor | None:
        made = make_mask(mask_function)
        # Models of the interface leave a mask to it; others may compute with theirs before.
        return torch.zeros(1, 1, 1, 1) if made is None and is_adapted else made

    AttentionInterface.register(_NAME, cache.attend)
    AttentionMaskInterface.register(_NAME, mask)
    try:
        with quiet():
            model.set_attn_implementation(_NAME)
        if is_adapted:  # transformers leaves such a model as it is
            model.config._attn_implementation = _NAME
    except Exception as error:  # models refuse it in many ways
        raise UnsupportedModelError(
            "its attention is computed in its own way, which transformers does not let replace"
        ) from error
    try:
        with adapted(model, cache):
            yield
    finally:
        model.config._attn_implementation = before
        model.set_attn_implementation(before)
        AttentionInterface.register(_NAME, _unplugged)
        AttentionMaskInterface.register(_NAME, _unplugged)


def logits_of(
    model: PreTrainedModel, input_ids: Tensor, positions: Tensor, cache: ForeignCache
) -> Tensor:
    """Calls the model with as much of this as its code takes; adapters find the rest in `cache`.

    Args:
        model: Within `plugged`.
        input_ids: `[batch, length]`.
        positions: Of the tokens in their texts, from 0, `[batch, length]`.
        cache: What the model is plugged into.
    """
    cache.positions = positions
    own = positions + first_position(model)
    given = {"position_ids": own, "past_key_values": cache, "use_cache": True}
    known = inspect.signature(model.forward).parameters
    taken = {name: value for name, value in given.items() if name in known}
    logits = model(input_ids=input_ids, **taken)[0]
    assert isinstance(logits, Tensor)
    return logits


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


def understand(extras: Mapping[str, object]) -> Extras:
    """What a model hands to its attention beside queries, keys, values, mask and scale.

    Args:
        extras: By the names that transformers' models use: `softcap` and `s_aux`, which are sinks;
            and, from adapters, `slopes` and `window`.

    Raises:
        UnsupportedModelError: Something else is there that may change something; it is named.
    """
    softcap, slopes, sinks = (extras.get(name) for name in ("softcap", "slopes", "s_aux"))
    window = extras.get("window", 0)
    for name, value in extras.items():
        if name in _HARMLESS or value is None or value is False:
            continue
        if name == "softcap" and isinstance(value, int | float):
            continue
        if name in ("slopes", "s_aux") and isinstance(value, Tensor):
            continue
        if name == "window" and isinstance(value, int):
            continue
        does = _KNOWN_EXTRAS.get(name, f"computes its attention with {name!r}")
        raise UnsupportedModelError(f"it {does}, which this version cannot convert")
    return Extras(
        softcap=float(softcap) if isinstance(softcap, int | float) else 0.0,
        slopes=slopes if isinstance(slopes, Tensor) else None,
        sinks=sinks if isinstance(sinks, Tensor) else None,
        window=window if isinstance(window, int) else 0,
    )


def _unplugged(*_: object, **__: object) -> Attended:
    raise AssertionError("the model is used outside of its export")
