"""The memory of cached keys and values in slots, one array a layer and kind."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from enginehouse_server.engine.decoder import DecoderLimits, LayerGeometry

from .slot_attention import PAGE

__all__ = ["SlotCache"]

_ALIGNMENT = 64  # bytes: a cache line, and the widest register
Floats = NDArray[np.float32]


class SlotCache:
    """Slots of `limits.block_size` tokens of all layers, fp32.

    Attributes:
        tensors: By name of the compiled model's input, `[kv_heads, pages, PAGE, width]`.
    """

    def __init__(self, layers: Sequence[LayerGeometry], limits: DecoderLimits) -> None:
        """Reserves the memory; the kernel gives it as slots are first written."""
        self._pages_of_slot = limits.block_size // PAGE
        kinds = {
            f"past_{kind}.{i}": (layer.num_kv_heads, width)
            for i, layer in enumerate(layers)
            for kind, width in (("key", layer.key_dim), ("value", layer.value_dim))
        }
        # [kv_heads, slots, capacity, width]
        self._memory = {
            name: _zeros((heads, limits.num_blocks, limits.block_size, width))
            for name, (heads, width) in kinds.items()
        }
        self.tensors = {
            name: ov.Tensor(memory.reshape(len(memory), -1, PAGE, memory.shape[3]), True)
            for name, memory in self._memory.items()
        }

    def pages(self, slots: Sequence[int], num_rows: int, num_tokens: int) -> NDArray[np.int32]:
        """Where the first tokens of each slot lie, `[num_rows, pages]`; further rows see any.

        Beyond the end of a slot its last page comes again: such places are only of padding.
        """
        first = np.zeros(num_rows, np.int32)
        first[: len(slots)] = slots
        count = -(-num_tokens // PAGE)
        within = np.minimum(np.arange(count, dtype=np.int32), self._pages_of_slot - 1)
        return first[:, None] * self._pages_of_slot + within

    def write(
        self,
        slots: Sequence[int],
        starts: NDArray[np.int32],
        num_new: int,
        new: Mapping[str, Floats],
    ) -> None:
        """Keeps new entries.

        Args:
            slots: Of the rows.
            starts: Tokens that each slot has already.
            num_new: New ones of each row.
            new: By name of the input, `[batch, kv_heads, length, width]`; may have padding.
        """
        rows = len(slots)
        # What is no number is no use to its own sequence, and would spread to whoever has the slot
        # next: nothing times it is still no number. Once in a layer, it is in all that follow.
        is_sound = bool(np.isfinite(new[next(reversed(self._memory))][:rows, :, :num_new]).all())
        for name, memory in self._memory.items():
            entries = new[name][:rows, :, :num_new]
            if not is_sound:
                entries = np.nan_to_num(entries)
            if rows == 1:
                memory[:, slots[0], starts[0] : starts[0] + num_new] = entries[0]
            else:
                memory[:, slots, starts[:rows]] = entries[:, :, 0].swapaxes(0, 1)

    def copy(self, source: int, target: int) -> None:
        """Copies one slot into another."""
        for memory in self._memory.values():
            memory[:, target] = memory[:, source]

    def clear(self, slots: Sequence[int]) -> None:
        """Makes slots zeros again."""
        for memory in self._memory.values():
            memory[:, list(slots)] = 0

    def release(self) -> None:
        """Gives the memory back; nothing may be computing on it."""
        self.tensors, self._memory = {}, {}


def _zeros(shape: tuple[int, ...]) -> Floats:
    """Zeros that begin at an aligned address."""
    size = math.prod(shape)
    memory = np.zeros(size + _ALIGNMENT // 4, np.float32)
    begin = -memory.ctypes.data % _ALIGNMENT // 4
    return memory[begin : begin + size].reshape(shape)
