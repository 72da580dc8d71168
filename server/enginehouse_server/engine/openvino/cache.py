"""The memory of cached keys and values, one tensor a layer and kind, in blocks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from enginehouse_server.errors import PlanMismatchError

from .paged_attention import BLOCK_SIZE, CACHE_INPUTS

__all__ = ["BlockCache"]

_ALIGNMENT = 64  # bytes: a cache line, and the widest register


class _Part(NamedTuple):
    """One layer's keys or values, as the compiled model wants them; `shape` is of a block."""

    name: str
    kind: ov.Type
    shape: tuple[int, ...]

    @property
    def block_bytes(self) -> int:
        return math.prod(self.shape) * int(self.kind.size)


class BlockCache:
    """Blocks of `BLOCK_SIZE` tokens of all layers.

    Attributes:
        num_blocks: How many there are.
        tensors: By name of the compiled model's input.
    """

    def __init__(self, inputs: Sequence[ov.ConstOutput], max_bytes: int, max_blocks: int) -> None:
        """Reserves the memory; the kernel gives it as blocks are first written.

        Args:
            inputs: Of the compiled model.
            max_bytes: Most memory.
            max_blocks: Most blocks, whatever the memory.

        Raises:
            PlanMismatchError: There is no room for one block.
        """
        parts = [_part(i) for i in inputs if i.any_name.split(".")[0] in CACHE_INPUTS]
        block_bytes = sum(part.block_bytes for part in parts)
        self.num_blocks = min(max_blocks, max_bytes // block_bytes)
        if self.num_blocks < 1:
            raise PlanMismatchError(
                f"{max_bytes} bytes of cache hold no block of {BLOCK_SIZE} tokens, which takes "
                f"{block_bytes}: allow more"
            )
        # Zeros, never what memory held before: a NaN in an unused place would spread.
        self._bytes = {p.name: _zeros(self.num_blocks, p.block_bytes) for p in parts}
        self.tensors = {
            p.name: ov.Tensor(self._bytes[p.name], ov.Shape([self.num_blocks, *p.shape]), p.kind)
            for p in parts
        }

    def copy(self, source: int, target: int) -> None:
        """Copies one block into another."""
        for memory in self._bytes.values():
            memory[target] = memory[source]

    def clear(self, blocks: Sequence[int]) -> None:
        """Makes blocks zeros again."""
        for memory in self._bytes.values():
            memory[list(blocks)] = 0

    def release(self) -> None:
        """Gives the memory back; nothing may be computing on it."""
        self.tensors, self._bytes = {}, {}


def _part(tensor: ov.ConstOutput) -> _Part:
    sizes = tuple(d.get_length() for d in list(tensor.partial_shape)[1:])
    return _Part(tensor.any_name, tensor.element_type, sizes)


def _zeros(num_blocks: int, block_bytes: int) -> NDArray[np.uint8]:
    """Zeros `[num_blocks, block_bytes]` that begin at an aligned address."""
    size = num_blocks * block_bytes
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size].reshape(num_blocks, block_bytes)
