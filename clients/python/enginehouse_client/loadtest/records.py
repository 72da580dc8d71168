"""What the results of all kinds of load hold, as plain data with stable names."""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Counts",
    "ErrorCount",
    "Generator",
    "Histogram",
    "Pace",
    "Quantiles",
    "Served",
]


@dataclass(frozen=True, slots=True)
class Pace:
    """When requests are sent.

    Attributes:
        mode: "closed": after the answer to the last; "open": at random times.
        concurrency: Closed: number of clients.
        rate: Open: requests a second, on average.
        max_in_flight: Open: most requests unanswered at any time.
    """

    mode: Literal["closed", "open"]
    concurrency: int | None = None
    rate: float | None = None
    max_in_flight: int | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """The model that answered, and the engine behind it; see `Model` and `Engine`."""

    model: str
    version: int
    source: str
    backend: str
    target: str
    precision: str
    runtime_version: str
    device: str


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of measured values, by nearest rank: each is a value that did occur, but the mean."""

    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests due in the measurement, by what became of them: the others add up to `due`.

    Attributes:
        due: Their time had come.
        answered: Succeeded.
        failed: Failed; `errors` tells them apart.
        unsent: Open: not sent, because too many were unanswered.
        unfinished: Still unanswered when the run was interrupted.
    """

    due: int
    answered: int
    failed: int
    unsent: int
    unfinished: int


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """Failures of one kind: class of the client's error, gRPC status, and what the first said."""

    error: str
    code: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Generator:
    """What generating the load took, on the machine that ran it.

    Attributes:
        cpu_share: Share of one core that it used.
        cpu_us_per_request: Processor time for each request, microseconds.
        send_lag_ms: How much later than due requests were sent; it is part of the latency.
        has_kept_up: The lag stayed small and the core was not used up.
    """

    cpu_share: float
    cpu_us_per_request: float
    send_lag_ms: Quantiles | None
    has_kept_up: bool


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values lay between two neighbouring edges; one count fewer than edges."""

    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]
