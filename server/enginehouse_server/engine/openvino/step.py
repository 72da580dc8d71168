"""A step's tokens and places, laid out for paged attention in buffers that are made once."""

from collections.abc import Sequence

import numpy as np
import openvino as ov
from numpy.typing import DTypeLike, NDArray

from enginehouse_server.engine.decoder import StepItem

from .paged_attention import BLOCK_SIZE

__all__ = ["StepBuffers"]

Ints = NDArray[np.int32]


class StepBuffers:
    """Tensors for the compiled model's inputs, shaped anew by every step in the same memory.

    Attributes:
        tensors: By name of the input.
    """

    def __init__(self, max_sequences: int, max_step_tokens: int, max_tokens: int) -> None:
        self._max_sequences, self._max_step_tokens = max_sequences, max_step_tokens
        max_blocks = max_sequences * -(-max_tokens // BLOCK_SIZE)
        self.tensors: dict[str, ov.Tensor] = {}
        self._memory: dict[str, Ints | NDArray[np.int64]] = {}
        self._add("input_ids", (max_step_tokens, 1), np.int64)
        self._add("write_index", (max_step_tokens,), np.int32)
        self._add("logit_rows", (max_step_tokens,), np.int64)
        self._add("past_lens", (max_sequences,), np.int32)
        self._add("subsequence_begins", (max_sequences + 1,), np.int32)
        self._add("block_indices", (max_blocks,), np.int32)
        self._add("block_indices_begins", (max_sequences + 1,), np.int32)
        self._add("max_context_len", (), np.int32)

    def fill(self, items: Sequence[StepItem]) -> None:
        """Lays the items out. Their blocks and tokens are copied."""
        num_items = len(items)
        assert 0 < num_items <= self._max_sequences, "as many items as the limits allow"
        past = np.fromiter((item.num_cached for item in items), np.int32, num_items)
        new = np.fromiter((len(item.tokens) for item in items), np.int32, num_items)
        wanted = np.fromiter((item.num_logits for item in items), np.int32, num_items)
        used = -(-(past + new) // BLOCK_SIZE)
        ids: list[int] = []
        blocks: list[int] = []
        for item, count in zip(items, used.tolist(), strict=True):
            ids.extend(item.tokens)
            blocks.extend(item.blocks[:count])
        ends = np.cumsum(new, dtype=np.int32)
        assert ends[-1] <= self._max_step_tokens, "as many tokens as the limits allow"
        assert len(blocks) == used.sum(), "every item has blocks for all of its tokens"
        self._set("input_ids", ids)
        self._set("write_index", _ranges(past, new))
        self._set("logit_rows", _ranges(ends - wanted, wanted))
        self._set("past_lens", past)
        self._set_begins("subsequence_begins", ends)
        self._set("block_indices", blocks)
        self._set_begins("block_indices_begins", np.cumsum(used, dtype=np.int32))
        self._memory["max_context_len"][...] = (past + new).max()

    def _add(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        tensor = ov.Tensor(ov.Type(np.dtype(dtype)), ov.Shape(shape))
        self.tensors[name] = tensor
        self._memory[name] = tensor.data.reshape(-1) if shape else tensor.data

    def _set(self, name: str, values: Sequence[int] | Ints) -> None:
        count = len(values)
        self._memory[name][:count] = values
        self._resize(name, count)

    def _set_begins(self, name: str, ends: Ints) -> None:
        """Zero, then the ends."""
        self._memory[name][0] = 0
        self._memory[name][1 : len(ends) + 1] = ends
        self._resize(name, len(ends) + 1)

    def _resize(self, name: str, count: int) -> None:
        # A tensor keeps its memory while it is made no larger than it was at first.
        self.tensors[name].shape = [count, 1] if name == "input_ids" else [count]


def _ranges(starts: Ints, counts: Ints) -> Ints:
    """Of each pair, `start, start + 1 ...`, `count` of them, one after the other."""
    before = np.cumsum(counts, dtype=np.int32) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum(), dtype=np.int32)
