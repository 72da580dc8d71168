"""One row of numbers for each request of a run, and what its errors were."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from enginehouse_client.errors import EnginehouseError

__all__ = ["ANSWERED", "ErrorKind", "Rows", "Samples"]

ANSWERED = 0.0


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
        columns: Names; "scheduled", "sent", "done" and "outcome" are among them.
        rows: `[requests, columns]`, float64.
        errors: What the outcomes 1, 2 ... were.
    """

    columns: Sequence[str]
    rows: NDArray[np.float64]
    errors: Sequence[ErrorKind] = field(default=())

    def __getitem__(self, column: str) -> NDArray[np.float64]:
        """A column, `[requests]`; outcome `ANSWERED` is success."""
        values: NDArray[np.float64] = self.rows[:, self.columns.index(column)]
        return values

    def where(self, mask: NDArray[np.bool_]) -> "Samples":
        """The rows that a mask `[requests]` chooses."""
        return Samples(self.columns, self.rows[mask], self.errors)

    @property
    def is_answered(self) -> NDArray[np.bool_]:
        """Which requests succeeded, `[requests]`."""
        return np.equal(self["outcome"], ANSWERED)

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """From the time that a request was due until it ended, `[requests]`."""
        return (self["done"] - self["scheduled"]) * 1e3


class Rows:
    """Collects samples; cheap, because the server waits meanwhile."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._rows = array("d")
        self._errors: dict[tuple[str, str], int] = {}
        self._kinds: list[ErrorKind] = []

    def add(self, row: Sequence[float]) -> None:
        """A request ended: its numbers, by the columns."""
        self._rows.extend(row)

    def outcome_of(self, error: EnginehouseError) -> float:
        """The outcome that a failure is taken down as: 1, 2 ... by its kind."""
        key = (type(error).__name__, error.code.name)
        if key not in self._errors:
            self._kinds.append(ErrorKind(*key, example=str(error)))
            self._errors[key] = len(self._kinds)
        return float(self._errors[key])

    def samples(self) -> Samples:
        """All that was taken down."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, len(self._columns))
        return Samples(self._columns, rows, tuple(self._kinds))
