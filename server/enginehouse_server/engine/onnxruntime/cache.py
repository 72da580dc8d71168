"""The memory of cached keys and values in slots, one array a layer and kind."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.decoder import DecoderLimits, LayerGeometry

__all__ = ["SlotMemory"]

_ALIGNMENT = 64  # bytes: a cache line, and the widest register
Floats = NDArray[np.float32]


class SlotMemory:
    """Rows of `limits.block_size` tokens of all layers, fp32, which a graph updates in place.

    Attributes:
        layers: By name of the graph's input, `[rows, kv_heads, capacity, width]`.
    """

    def __init__(self, layers: Sequence[LayerGeometry], limits: DecoderLimits) -> None:
        """Reserves the memory; the kernel gives it as rows are first written."""
        self.layers = {
            f"past_{kind}.{i}": _zeros(
                (limits.num_blocks, layer.num_kv_heads, limits.block_size, width)
            )
            for i, layer in enumerate(layers)
            for kind, width in (("key", layer.key_dim), ("value", layer.value_dim))
        }
        self._num_used = [0] * limits.num_blocks  # tokens of each row; what follows is of no use

    def use(self, row: int, num_tokens: int) -> None:
        """Notes how many tokens of a row are, or are about to be, its sequence's."""
        self._num_used[row] = num_tokens

    def keep_sound(self, starts: NDArray[np.int32], first_row: int, num_new: int) -> None:
        """Makes numbers of what is none of the new tokens of some rows, from a first one on.

        It is no use to its own sequence, and would spread to whoever has the row next: nothing
        times it is still no number. Once in a layer, it is in all that follow.
        """
        last = next(reversed(self.layers.values()))
        for row, start in enumerate(starts.tolist(), first_row):
            new = np.s_[row, :, start : start + num_new]
            if not np.isfinite(last[new]).all():
                for memory in self.layers.values():
                    memory[new] = np.nan_to_num(memory[new])

    def copy(self, source: int, target: int) -> None:
        """Copies one row into another."""
        end = self._num_used[source]
        for memory in self.layers.values():
            memory[target, :, :end] = memory[source, :, :end]
        self.use(target, end)

    def swap(self, one: int, other: int) -> None:
        """Exchanges two rows."""
        used = self._num_used
        end = max(used[one], used[other])
        for memory in self.layers.values():
            kept = memory[one, :, :end].copy()
            memory[one, :, :end] = memory[other, :, :end]
            memory[other, :, :end] = kept
        used[one], used[other] = used[other], used[one]

    def clear(self, rows: Sequence[int]) -> None:
        """Makes rows zeros again."""
        for row in rows:
            for memory in self.layers.values():
                memory[row, :, : self._num_used[row]] = 0
            self.use(row, 0)

    def release(self) -> None:
        """Gives the memory back; nothing may be computing on it."""
        self.layers = {}


def _zeros(shape: tuple[int, ...]) -> Floats:
    """Zeros that begin at an aligned address."""
    size = math.prod(shape)
    memory = np.zeros(size + _ALIGNMENT // 4, np.float32)
    begin = -memory.ctypes.data % _ALIGNMENT // 4
    return memory[begin : begin + size].reshape(shape)
