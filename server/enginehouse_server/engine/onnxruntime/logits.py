"""Where a session writes a step's logits, and what of them the host is given.

On a device they come with what they are reduced to, which the host always gets; the rows of which
all are wanted it gets with the step, and any other when it asks.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import ReducedLogits
from enginehouse_server.engine.reduction import ReducedLayout

from .elements import to_fp32
from .memory import Memory, Shared
from .session import BoundSession

__all__ = ["StepLogits"]


class _Room(NamedTuple):
    """Memory for rows of logits, and for what they are reduced to."""

    num_rows: int
    whole: Shared
    reduced: Shared | None


class StepLogits:
    """Of one step at a time."""

    def __init__(
        self,
        session: BoundSession,
        memory: Memory,
        vocab_size: int,
        max_sequences: int,
        num_best: int,
    ) -> None:
        """Allocates nothing yet.

        Args:
            session: That writes them.
            memory: Where.
            vocab_size: Logits of a row.
            max_sequences: So many rows and fewer are always at one address, for captured graphs.
            num_best: To which the graph reduces them; 0 if it does not.
        """
        self._session, self._memory, self._vocab_size = session, memory, vocab_size
        self._max_sequences, self._num_best = max_sequences, num_best
        self._element = session.outputs["logits"]
        self._decodes: _Room | None = None
        self._scores: _Room | None = None
        self._room: _Room | None = None  # of the step
        self._is_there: NDArray[np.bool_] = np.zeros(0, np.bool_)  # of each row of the step

    @property
    def num_wanted(self) -> int:
        """Rows that the step was asked for."""
        return len(self._is_there)

    def bind(self, num_rows: int) -> None:
        """Lets the session write a step's rows."""
        room = self._room = self._room_for(num_rows)
        self._session.bind_output("logits", (num_rows, self._vocab_size), room.whole.address)
        if room.reduced is not None:
            layout = ReducedLayout(num_rows, self._num_best)
            for name, offset in layout.offsets.items():
                address = room.reduced.address + offset
                self._session.bind_output(name, layout.shapes[name], address)

    def download(self, is_wanted: NDArray[np.bool_]) -> None:
        """Gives the host what it is to have of a step that was enqueued, and waits for that.

        Args:
            is_wanted: Of which rows all, `[rows]`; those that are bound beyond are of no use.

        Raises:
            DeviceError: It, or the step, failed.
        """
        assert self._room is not None, "no step is bound"
        self._is_there = np.zeros(len(is_wanted), np.bool_)
        reduced = self._room.reduced
        if reduced is None:
            is_wanted = np.ones_like(is_wanted)
        elif len(is_wanted):
            reduced.download(ReducedLayout(len(is_wanted), self._num_best).num_bytes)
        self._give(is_wanted)

    def rows(self, begin: int, end: int) -> Logits:
        """All logits `[end - begin, vocab]` of some rows, which are copied unless they were.

        Raises:
            DeviceError: They could not be.
        """
        assert self._room is not None, "no step was computed"
        missing = ~self._is_there
        missing[:begin] = missing[end:] = False
        if missing.any():
            self._give(missing)
        shape, dtype = (end - begin, self._vocab_size), self._element.dtype
        return to_fp32(self._room.whole.array(shape, dtype, begin * self._row_bytes), self._element)

    def reduced(self) -> ReducedLogits:
        """What the step's logits were reduced to."""
        assert self._room is not None, "no step was computed"
        return ReducedLayout(self.num_wanted, self._num_best).read(self._array, self.rows)

    @property
    def _row_bytes(self) -> int:
        return self._element.dtype.itemsize * self._vocab_size

    def _array(self, offset: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        assert self._room is not None, "no step was computed"
        assert self._room.reduced is not None, "the graph does not reduce them"
        return self._room.reduced.array(shape, dtype, offset)

    def _give(self, chosen: NDArray[np.bool_]) -> None:
        """Copies some rows to the host, neighbours at once, and waits for all that was copied."""
        assert self._room is not None, "no step is bound"
        whole = self._room.whole
        edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
        for begin, end in edges.reshape(-1, 2).tolist():
            whole.download((end - begin) * self._row_bytes, begin * self._row_bytes)
        self._is_there |= chosen
        whole.download(0)  # also where none is chosen: what was enqueued before is waited for
        whole.wait()

    def _room_for(self, num_rows: int) -> _Room:
        if num_rows <= self._max_sequences:
            if self._decodes is None:
                self._decodes = self._make(self._max_sequences)
            return self._decodes
        if self._scores is None or num_rows > self._scores.num_rows:
            # The room before it is not used again.
            num_before = self._scores.num_rows if self._scores is not None else 0
            self._scores = self._make(max(num_rows, 2 * num_before))
        return self._scores

    def _make(self, num_rows: int) -> _Room:
        reduced: Shared | None = None
        if self._num_best:
            layout = ReducedLayout(num_rows, self._num_best)
            reduced = self._memory.share(layout.num_bytes)
        return _Room(num_rows, self._memory.share(num_rows * self._row_bytes), reduced)
