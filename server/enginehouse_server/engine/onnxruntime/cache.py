"""The memory of cached keys and values in slots, one range of rows a layer and kind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.cuda.host import array_at
from enginehouse_server.engine.decoder import DecoderLimits, LayerGeometry

from .elements import BF16, Element
from .memory import Memory, Planes

__all__ = ["Rows", "SlotMemory"]

_FREE_ROWS = 1  # beyond the slots': where one goes while two are swapped


class Rows(NamedTuple):
    """Some rows of a layer's keys or values.

    Attributes:
        address: Of the first.
        shape: `[rows, kv_heads, capacity, width]`.
    """

    address: int
    shape: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Layer:
    address: int
    num_heads: int
    capacity: int
    width: int
    token_bytes: int

    @property
    def row_bytes(self) -> int:
        return self.num_heads * self.capacity * self.token_bytes

    def row(self, number: int) -> int:
        return self.address + number * self.row_bytes

    def planes(self, num_tokens: int) -> Planes:
        """What of a row has tokens."""
        pitch = self.capacity * self.token_bytes
        return Planes(self.num_heads, pitch, num_tokens * self.token_bytes)


class SlotMemory:
    """Rows of `limits.block_size` tokens of all layers, which a graph updates in place."""

    def __init__(
        self,
        layers: Sequence[LayerGeometry],
        limits: DecoderLimits,
        memory: Memory,
        elements: Mapping[str, Element],
    ) -> None:
        """Reserves the memory.

        Args:
            layers: Shape of each layer's attention.
            limits: How many rows, and how long.
            memory: Where.
            elements: Type of each, by name of the graph's input, "past_key.0" and so on.
        """
        self._memory, self._elements = memory, elements
        self._num_rows = limits.num_blocks
        self._layers: dict[str, _Layer] = {}
        for i, layer in enumerate(layers):
            for kind, width in (("key", layer.key_dim), ("value", layer.value_dim)):
                name = f"past_{kind}.{i}"
                token_bytes = width * elements[name].dtype.itemsize
                row_bytes = layer.num_kv_heads * limits.block_size * token_bytes
                self._layers[name] = _Layer(
                    memory.reserve((limits.num_blocks + _FREE_ROWS) * row_bytes),
                    layer.num_kv_heads,
                    limits.block_size,
                    width,
                    token_bytes,
                )
        self._num_used = [0] * limits.num_blocks  # tokens of each row; what follows is of no use

    def rows(self, first: int, count: int) -> Iterator[tuple[str, Rows]]:
        """Some rows of each layer and kind, by name of the graph's input."""
        for name, layer in self._layers.items():
            shape = (count, layer.num_heads, layer.capacity, layer.width)
            yield name, Rows(layer.row(first), shape)

    def use(self, row: int, num_tokens: int) -> None:
        """Notes how many tokens of a row are, or are about to be, its sequence's."""
        self._num_used[row] = num_tokens

    def keep_sound(self, starts: NDArray[np.int32], first_row: int, num_new: int) -> None:
        """Makes numbers of what is none of the new tokens of some rows, from a first one on.

        It is no use to its own sequence, and would spread to whoever has the row next: nothing
        times it is still no number. Once in a layer, it is in all that follow. For memory that the
        host can read; elsewhere the graph takes care of it.
        """
        last = self._array(next(reversed(self._layers)))
        for row, start in enumerate(starts.tolist(), first_row):
            new = np.s_[row, :, start : start + num_new]
            if not np.isfinite(last[new]).all():
                for name in self._layers:
                    array = self._array(name)
                    array[new] = np.nan_to_num(array[new])

    def copy(self, source: int, target: int) -> None:
        """Copies one row into another."""
        end = self._num_used[source]
        self._copy(target, source, end)
        self.use(target, end)

    def swap(self, one: int, other: int) -> None:
        """Exchanges two rows."""
        used, free = self._num_used, self._num_rows
        self._copy(free, one, used[one])
        self._copy(one, other, used[other])
        self._copy(other, free, used[one])
        used[one], used[other] = used[other], used[one]

    def clear(self, rows: Sequence[int]) -> None:
        """Makes rows zeros again."""
        for row in rows:
            for layer in self._layers.values():
                self._memory.clear(layer.row(row), layer.planes(self._num_used[row]))
            self.use(row, 0)

    def _copy(self, target: int, source: int, num_tokens: int) -> None:
        for layer in self._layers.values():
            self._memory.copy(layer.row(target), layer.row(source), layer.planes(num_tokens))

    def _array(self, name: str) -> NDArray[np.floating]:
        layer, element = self._layers[name], self._elements[name]
        assert element != BF16, "no processor computes on caches in bf16"
        shape = (self._num_rows, layer.num_heads, layer.capacity, layer.width)
        num_bytes = self._num_rows * layer.row_bytes
        return array_at(layer.address, num_bytes, shape, element.dtype)  # type: ignore[return-value]
