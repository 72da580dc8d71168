"""One row of numbers for each request of a run."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from enginehouse.v1.inference_service_pb2 import ClassifyResponse
from enginehouse_client.errors import EnginehouseError

__all__ = ["ANSWERED", "ErrorKind", "Recorder", "Samples"]

ANSWERED = 0.0
_COLUMNS = (
    "scheduled",
    "sent",
    "done",
    "outcome",
    "num_texts",
    "num_tokens",
    "tokenize_ms",
    "queue_ms",
    "compute_ms",
    "total_ms",
    "batch_size",
    "padding_fraction",
)
_NO_ANSWER = (0.0,) * 8


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """Failures of one class and status, and what the first of them said."""

    error: str
    code: str
    example: str


@dataclass(frozen=True, slots=True)
class Samples:
    """Requests of a run that were sent and ended, a row each; times are seconds of one clock.

    Attributes:
        rows: `[requests, columns]`, float64.
        errors: What the outcomes 1, 2 ... were.
    """

    rows: NDArray[np.float64]
    errors: Sequence[ErrorKind] = field(default=())

    def __getitem__(self, column: str) -> NDArray[np.float64]:
        """A column, `[requests]`; outcome `ANSWERED` is success."""
        values: NDArray[np.float64] = self.rows[:, _COLUMNS.index(column)]
        return values

    def where(self, mask: NDArray[np.bool_]) -> "Samples":
        """The rows that a mask `[requests]` chooses."""
        return Samples(self.rows[mask], self.errors)

    @property
    def is_answered(self) -> NDArray[np.bool_]:
        """Which requests succeeded, `[requests]`."""
        return np.equal(self["outcome"], ANSWERED)

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """From the time that a request was due until it ended, `[requests]`."""
        return (self["done"] - self["scheduled"]) * 1e3


class Recorder:
    """Takes down each request as it ends; cheap, because the server waits meanwhile."""

    def __init__(self) -> None:
        self._rows = array("d")
        self._unsent = array("d")
        self._errors: dict[tuple[str, str], int] = {}
        self._kinds: list[ErrorKind] = []

    def answered(
        self, scheduled: float, sent: float, done: float, response: ClassifyResponse
    ) -> None:
        """A request succeeded; its timing is that of its slowest text."""
        results = response.results
        if len(results) == 1:
            slowest, num_tokens = results[0].timing, results[0].num_tokens
        else:
            slowest = max((result.timing for result in results), key=lambda each: each.total_ms)
            num_tokens = sum(result.num_tokens for result in results)
        self._rows.extend(
            (
                scheduled,
                sent,
                done,
                ANSWERED,
                len(results),
                num_tokens,
                slowest.tokenize_ms,
                slowest.queue_ms,
                slowest.compute_ms,
                slowest.total_ms,
                slowest.batch_size,
                slowest.padding_fraction,
            )
        )

    def failed(self, scheduled: float, sent: float, done: float, error: EnginehouseError) -> None:
        """A request failed."""
        key = (type(error).__name__, error.code.name)
        if key not in self._errors:
            self._kinds.append(ErrorKind(*key, example=str(error)))
            self._errors[key] = len(self._kinds)
        self._rows.extend((scheduled, sent, done, float(self._errors[key]), *_NO_ANSWER))

    def unsent(self, scheduled: float) -> None:
        """A request was due, but too many were unanswered."""
        self._unsent.append(scheduled)

    def num_unsent_since(self, start: float) -> int:
        """How many were due from then on, but not sent."""
        return sum(scheduled >= start for scheduled in self._unsent)

    def samples(self) -> Samples:
        """All that was taken down."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, len(_COLUMNS))
        return Samples(rows, tuple(self._kinds))
