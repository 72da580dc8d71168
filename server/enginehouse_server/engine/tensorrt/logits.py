"""A step's logits on the device and the host: what they are reduced to, and those that are wanted.

What the plan reduces them to is copied with every step. All logits of a row stay on the device
until somebody wants them: before the step, so that they are copied behind it, or after it.
"""

from typing import cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.cuda import CudaDevice, CudaStream
from enginehouse_server.engine.decoder import ReducedLogits
from enginehouse_server.engine.reduction import ReducedLayout

from .buffers import Staged
from .graphs import Copy

__all__ = ["StagedLogits", "num_staged_bytes"]

_LOGIT_BYTES = 4


class StagedLogits:
    """Room for rows of logits on both sides, of one step at a time."""

    def __init__(self, device: CudaDevice, num_rows: int, vocab_size: int, num_best: int) -> None:
        """Allocates it.

        Args:
            device: Of the plan.
            num_rows: Most rows of a step, until more are reserved.
            vocab_size: Logits of a row.
            num_best: To which the plan reduces them; 0 if it does not.

        Raises:
            DeviceError: There is not as much memory.
        """
        self._device, self._vocab_size, self._num_best = device, vocab_size, num_best
        self._num_rows = 0
        self._all: Staged | None = None
        self._reduced: Staged | None = None
        self._is_there: NDArray[np.bool_] = np.zeros(0, np.bool_)  # of each row of the step
        self._stream: CudaStream | None = None  # of the step
        self._arrived = device.event()
        self.reserve(num_rows)

    @property
    def num_computed(self) -> int:
        """Rows of the step."""
        return len(self._is_there)

    def reserve(self, num_rows: int) -> None:
        """Makes room for more rows, elsewhere; nothing may be using those there are.

        Raises:
            DeviceError: There is not as much memory.
        """
        if num_rows <= self._num_rows:
            return
        self.free()
        try:
            self._all = Staged(self._device, _LOGIT_BYTES * num_rows * self._vocab_size)
            if self._num_best:
                layout = ReducedLayout(num_rows, self._num_best)
                self._reduced = Staged(self._device, layout.num_bytes)
        except BaseException:
            self.free()
            raise
        self._num_rows = num_rows

    def addresses(self, num_rows: int) -> dict[str, int]:
        """On the device, of the plan's outputs for so many rows, by name."""
        assert self._all is not None, "freed"
        found = {"logits": self._all.address()}
        if self._reduced is not None:
            offsets = ReducedLayout(num_rows, self._num_best).offsets
            found |= {name: self._reduced.address(offset) for name, offset in offsets.items()}
        return found

    def copy(self, num_rows: int) -> Copy:
        """What goes to the host with every step: all it is reduced to, or else all."""
        if self._reduced is not None:
            return self._reduced.copy(ReducedLayout(num_rows, self._num_best).num_bytes)
        return self._copy_of(0, num_rows)

    def expect(self, is_wanted: NDArray[np.bool_], stream: CudaStream) -> None:
        """Enqueues copies behind a step of the rows of which all logits are wanted, `[rows]`."""
        self._stream = stream
        self._is_there = np.zeros(len(is_wanted), np.bool_)
        if self._reduced is None:
            self._is_there[:] = True  # they are copied with the step
        else:
            self._enqueue(is_wanted)

    def rows(self, begin: int, end: int) -> Logits:
        """All logits `[end - begin, vocab]` of rows of the step, which must be done.

        Raises:
            DeviceError: They could not be copied.
        """
        assert self._stream is not None, "no step was computed"
        missing = ~self._is_there
        missing[:begin] = missing[end:] = False
        if missing.any():
            self._enqueue(missing)
            self._stream.record(self._arrived)
            self._arrived.synchronize()
        assert self._all is not None, "freed"
        count = (end - begin) * self._vocab_size
        found = self._all.array(_LOGIT_BYTES * begin * self._vocab_size, count, np.float32)
        return cast(Logits, found.reshape(end - begin, self._vocab_size))

    def reduced(self) -> ReducedLogits:
        """What the step's logits were reduced to."""
        assert self._reduced is not None, "the plan does not reduce them"
        return ReducedLayout(self.num_computed, self._num_best).read(self._array, self.rows)

    def free(self) -> None:
        """Gives the memory back. Twice is once."""
        for staged in (self._all, self._reduced):
            if staged is not None:
                staged.free()
        self._all = self._reduced = None
        self._num_rows = 0

    def _array(self, offset: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        assert self._reduced is not None, "freed"
        return self._reduced.array(offset, int(np.prod(shape)), dtype).reshape(shape)

    def _enqueue(self, chosen: NDArray[np.bool_]) -> None:
        """Copies of some rows, neighbours at once."""
        assert self._stream is not None, "no step is computed"
        edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
        for begin, end in edges.reshape(-1, 2).tolist():
            on_device, on_host, num_bytes = self._copy_of(begin, end)
            self._device.copy_to_host(on_host, on_device, num_bytes, self._stream)
        self._is_there |= chosen

    def _copy_of(self, begin: int, end: int) -> Copy:
        assert self._all is not None, "freed"
        row_bytes = _LOGIT_BYTES * self._vocab_size
        return self._all.copy((end - begin) * row_bytes, begin * row_bytes)


def num_staged_bytes(num_rows: int, vocab_size: int, num_best: int) -> int:
    """What so many rows take on the device."""
    reduced = ReducedLayout(num_rows, num_best).num_bytes if num_best else 0
    return _LOGIT_BYTES * num_rows * vocab_size + reduced
