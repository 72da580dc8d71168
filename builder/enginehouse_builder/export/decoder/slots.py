"""The model as a step over slots: new tokens of each in, logits of some and the caches out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from enginehouse_builder.manifest import AttentionLayer

from .interface import ForeignCache, head_rows, logits_of, plugged, understand
from .operators import NO_SINK, attention, cache_update

__all__ = ["SlotDecoder"]


class SlotDecoder(nn.Module):
    """A step, to be traced within `plugged`.

    Slots are the batch. A runtime with paged attention runs the same graph over any mix of
    sequences by giving each token as a row of its own: batch is the number of tokens, length 1.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[AttentionLayer]) -> None:
        super().__init__()
        self.model = model
        self._step = _Step(layers)

    @contextmanager
    def plugged(self) -> Iterator[None]:
        """Within it the model's attention and cache are the graph's operators."""
        step = self._step
        with (
            plugged(self.model, step, lambda _: None),
            head_rows(self.model, lambda: step.logit_rows),
        ):
            yield

    def forward(
        self,
        input_ids: Tensor,
        write_index: Tensor,
        kv_length: Tensor,
        logit_rows: Tensor,
        caches: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Computes a step.

        Args:
            input_ids: New tokens of each slot, `[batch, length]` int64.
            write_index: Tokens that each slot has already, `[batch]` int32.
            kv_length: Tokens that each slot then has, `[batch]` int32.
            logit_rows: Tokens whose logits are wanted, as indices of `[batch * length]`, `[rows]`.
            caches: Keys of each layer, then values, `[batch, kv_heads, capacity, dim]`.

        Returns:
            Logits `[rows, vocab]` fp32, and the caches.
        """
        step = self._step
        step.begin(caches, write_index, kv_length, logit_rows)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        positions = write_index.to(torch.int64)[:, None] + places[None]  # [batch, length]
        logits = logits_of(self.model, input_ids, positions, step)
        return (logits[0].float(), *step.caches)


class _Step(ForeignCache):
    """The caches of one call, and its attention over them."""

    def __init__(self, geometry: Sequence[AttentionLayer]) -> None:
        super().__init__()
        self._geometry = geometry
        self.caches: list[Tensor] = []

    def begin(
        self, caches: list[Tensor], write_index: Tensor, kv_length: Tensor, logit_rows: Tensor
    ) -> None:
        self.caches = list(caches)
        self.write_index, self.kv_length, self.logit_rows = write_index, kv_length, logit_rows

    def write(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return key, value  # a model may yet make keys and values of them: those are cached

    def _cached(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of the layer just set, with these new ones."""
        at = (self.layer, self.layer + len(self._geometry))
        for i, new in zip(at, (key, value), strict=True):
            self.caches[i] = cache_update(self.caches[i], new, self.write_index)
        return self.caches[at[0]], self.caches[at[1]]

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
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling  # transformers' own rule
        layer, given = self._geometry[self.layer], understand(extras)
        slopes, sinks = given.slopes, given.sinks
        # Where one layer has them, all have: with what changes nothing where a layer has none.
        if slopes is None and any(other.has_slopes for other in self._geometry):
            slopes = torch.zeros(layer.num_heads)
        if sinks is None and any(other.has_sinks for other in self._geometry):
            sinks = torch.full((layer.num_heads,), NO_SINK)
        key, value = self._cached(key, value)
        output = attention(
            query * scale,
            key,
            value,
            self.kv_length,
            None if slopes is None else slopes.float(),
            None if sinks is None else sinks.float(),
            window=layer.window,
            softcap=layer.softcap,
        )
        return output.transpose(1, 2).contiguous(), None
