"""Adapted attention, tried before it is traced: the same text by the model itself, and in pieces.

An adapter says what a module's attention is. Here that is computed, in plain torch and over a
growing cache, and must give what the model gives when nothing of it is replaced.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export.graph import reason_of
from enginehouse_builder.export.limits import decoder_max_tokens, first_position
from enginehouse_builder.export.loading import quiet
from enginehouse_builder.manifest import AttentionLayer

from .interface import ForeignCache, head_rows, logits_of, plugged, understand
from .meaning import attend

__all__ = ["check_adapted", "check_positions"]

_LENGTH = 300  # tokens: beyond the usual window of 256
_FEW = 4  # tokens that show how positions are counted
_BEYOND = 16  # tokens that pass a layer's window
_LAST = 4  # tokens, of which the logits are compared
_TOLERANCE = 1e-3  # of the largest logit: fp32, sums in another order, many layers


def check_adapted(model: PreTrainedModel, layers: Sequence[AttentionLayer]) -> None:
    """Compares the model with itself, its attention replaced by what was seen of it.

    Args:
        model: In fp32, some of its modules with an adapter.
        layers: What its attention was observed to be.

    Raises:
        UnsupportedModelError: It says something else then.
    """
    wanted = max(_LENGTH, *(layer.window + _BEYOND for layer in layers))
    length = min(wanted, decoder_max_tokens(None, model))
    vocab_size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (1, length), generator=generator)
    with quiet(), torch.no_grad():
        original = _original(model, ids)
        replaced = _replaced(model, ids, layers)
    error = float((replaced - original).abs().max())
    allowed = _TOLERANCE * float(original.abs().max())
    if not error <= allowed:
        raise UnsupportedModelError(
            f"with its attention replaced its logits are off by {error:.2g} after {length} tokens, "
            f"where {allowed:.2g} is allowed: its attention is not what it was taken for"
        )


def check_positions(model: PreTrainedModel) -> None:
    """Compares the model with itself, told the positions that the graph will have and told none.

    Args:
        model: In fp32; its code takes `position_ids`.

    Raises:
        UnsupportedModelError: It counts otherwise.
    """
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    ids = torch.tensor([[token for token in range(_FEW + 1) if token != padding][:_FEW]])
    places = torch.arange(first_position(model), first_position(model) + _FEW)[None]
    try:
        with quiet(), torch.no_grad():
            original = model(input_ids=ids, use_cache=False)[0]
            told = model(input_ids=ids, position_ids=places, use_cache=False)[0]
            error = float((told - original).abs().max())
    except Exception as failure:  # whatever the model's code raises
        raise UnsupportedModelError(
            f"its code does not take a text without a cache: {reason_of(failure)}"
        ) from failure
    if not error <= _TOLERANCE * float(original.abs().max()):
        raise UnsupportedModelError(
            f"its code counts positions in its own way: told those of tokens, from "
            f"{first_position(model)}, its logits are off by {error:.2g}"
        )


def _original(model: PreTrainedModel, ids: Tensor) -> Tensor:
    rows = torch.arange(ids.shape[1] - _LAST, ids.shape[1])
    with head_rows(model, lambda: rows):
        logits = model(input_ids=ids, use_cache=False)[0]
    assert isinstance(logits, Tensor)
    return logits


def _replaced(model: PreTrainedModel, ids: Tensor, layers: Sequence[AttentionLayer]) -> Tensor:
    """The same in two pieces, the last one of the tokens that are compared."""
    cache = _GrowingCache(layers)
    num_first = ids.shape[1] - _LAST
    places = torch.arange(ids.shape[1])[None]
    with plugged(model, cache, lambda _: None), head_rows(model, lambda: torch.arange(_LAST)):
        logits_of(model, ids[:, :num_first], places[:, :num_first], cache)
        return logits_of(model, ids[:, num_first:], places[:, num_first:], cache)


class _GrowingCache(ForeignCache):
    """What the graph's operators mean, for one sequence."""

    def __init__(self, geometry: Sequence[AttentionLayer]) -> None:
        super().__init__()
        self._geometry = geometry
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.layer in self._kept:
            before = self._kept[self.layer]
            key, value = (torch.cat(b, dim=2) for b in zip(before, (key, value), strict=True))
        self._kept[self.layer] = (key, value)
        return key, value

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **extras: object,
    ) -> tuple[Tensor, None]:
        layer, given = self._geometry[self.layer], understand(extras)
        seen = attend(
            query * (query.shape[-1] ** -0.5 if scaling is None else scaling),
            key,
            value,
            window=layer.window,
            softcap=layer.softcap,
            slopes=given.slopes,
            sinks=given.sinks,
        )
        return seen.transpose(1, 2).contiguous(), None
