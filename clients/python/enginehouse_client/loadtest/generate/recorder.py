"""Takes down each Generate request as its tokens come, and how it ended."""

import time
from array import array

import numpy as np
from numpy.typing import NDArray

from enginehouse.v1.generate_pb2 import GeneratedSequence
from enginehouse_client.errors import EnginehouseError
from enginehouse_client.loadtest.samples import ANSWERED, Rows, Samples
from enginehouse_client.loadtest.window import Window

from .plan import Planned
from .spread import Spread

__all__ = ["CANCELLED", "CELL_S", "Flight", "Recorder"]

CANCELLED = -1.0
CELL_S = 0.1  # tokens are counted over time in cells of this length

_COLUMNS = (
    "scheduled",
    "sent",
    "done",
    "outcome",
    "first",
    "mean_itl_ms",
    "prompt_tokens",
    "asked_tokens",
    "output_tokens",
    "finish_reason",
    "queue_ms",
    "prefill_ms",
    "server_ttft_ms",
    "server_itl_ms",
    "total_ms",
    "num_preemptions",
    "server_prompt_tokens",
    "cached_tokens",
    "generated_tokens",
)
_NAN = float("nan")
_NO_ANSWER = (0.0,) * 10


class Recorder:
    """Rows of requests, the spread of times between tokens, and tokens over time.

    A request takes 152 bytes, a token none.

    Attributes:
        itl: Times between tokens, of requests due in the measurement.
    """

    def __init__(self, window: Window) -> None:
        num_cells = int((window.end - window.measured_from) / CELL_S) + 1
        self.itl = Spread()
        self._window, self._rows = window, Rows(_COLUMNS)
        self._prompt_cells = array("q", bytes(8 * num_cells))
        self._output_cells = array("q", bytes(8 * num_cells))

    def begin(self, scheduled: float, planned: Planned) -> "Flight":
        """A request is about to be sent."""
        return Flight(self, scheduled, planned, self._window.measures(scheduled))

    def count(self, now: float, prompt_tokens: int, output_tokens: int) -> None:
        """Tokens that the server has been through, by the time at which that was seen."""
        if self._window.measured_from <= now < self._window.end:
            cell = int((now - self._window.measured_from) / CELL_S)
            self._output_cells[cell] += output_tokens
            self._prompt_cells[cell] += prompt_tokens

    def add(self, row: tuple[float, ...]) -> None:
        """A request ended."""
        self._rows.add(row)

    def outcome_of(self, error: EnginehouseError) -> float:
        """The outcome that a failure is taken down as."""
        return self._rows.outcome_of(error)

    def samples(self) -> Samples:
        """All requests that ended."""
        return self._rows.samples()

    def tokens_over_time(self) -> NDArray[np.int64]:
        """Tokens of prompts and of answers within the measurement, `[2, cells]`."""
        return np.stack(
            [np.frombuffer(cells, np.int64) for cells in (self._prompt_cells, self._output_cells)]
        )


class Flight:
    """One request on its way; exactly one of its endings is called, unless the run is stopped."""

    __slots__ = (
        "_first",
        "_is_measured",
        "_last",
        "_later_tokens",
        "_output_tokens",
        "_planned",
        "_recorder",
        "_scheduled",
        "_sent",
    )

    def __init__(
        self, recorder: Recorder, scheduled: float, planned: Planned, is_measured: bool
    ) -> None:
        self._recorder, self._planned, self._is_measured = recorder, planned, is_measured
        self._scheduled, self._sent = scheduled, time.perf_counter()
        self._first = self._last = _NAN
        self._output_tokens = self._later_tokens = 0

    def take(self, num_tokens: int) -> None:
        """A message of a stream came, with so many tokens, at least one."""
        now = time.perf_counter()
        if not self._output_tokens:
            self._first = now
            self._recorder.count(now, self._planned.prompt_tokens, num_tokens)
        else:
            self._later_tokens += num_tokens
            if self._is_measured:
                # A message with several tokens held the first of them back for the last.
                self._recorder.itl.add((now - self._last) / num_tokens, num_tokens)
            self._recorder.count(now, 0, num_tokens)
        self._last = now
        self._output_tokens += num_tokens

    def take_whole(self, num_tokens: int) -> None:
        """The answer came in one piece."""
        self._output_tokens = num_tokens
        self._recorder.count(time.perf_counter(), self._planned.prompt_tokens, num_tokens)

    def answered(self, final: GeneratedSequence) -> None:
        """The server ended it; its last message says how."""
        timing, usage = final.timing, final.usage
        self._end(
            ANSWERED,
            (
                final.finish_reason,
                timing.queue_ms,
                timing.prefill_ms,
                timing.ttft_ms,
                timing.mean_itl_ms if timing.HasField("mean_itl_ms") else _NAN,
                timing.total_ms,
                timing.num_preemptions,
                usage.prompt_tokens,
                usage.cached_tokens,
                usage.generated_tokens,
            ),
        )

    def failed(self, error: EnginehouseError) -> None:
        """It failed."""
        self._end(self._recorder.outcome_of(error), _NO_ANSWER)

    def cancelled(self) -> None:
        """It was cancelled, as was planned."""
        self._end(CANCELLED, _NO_ANSWER)

    def _end(self, outcome: float, from_server: tuple[float, ...]) -> None:
        later = self._later_tokens
        self._recorder.add(
            (
                self._scheduled,
                self._sent,
                time.perf_counter(),
                outcome,
                self._first,
                (self._last - self._first) / later * 1e3 if later else _NAN,
                self._planned.prompt_tokens,
                self._planned.output_tokens,
                self._output_tokens,
                *from_server,
            )
        )
