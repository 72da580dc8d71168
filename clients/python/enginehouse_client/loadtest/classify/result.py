"""What a load of Classify found, as plain data: `LoadResult.to_json` is its written form."""

import json
from dataclasses import asdict, dataclass

from enginehouse_client.loadtest.records import (
    Counts,
    ErrorCount,
    Generator,
    Histogram,
    Pace,
    Quantiles,
    Served,
)

__all__ = [
    "SCHEMA",
    "Breakdown",
    "LoadResult",
    "LoadShape",
    "ServerSide",
    "Throughput",
    "TimelinePoint",
]

SCHEMA = "enginehouse.loadtest/1"


@dataclass(frozen=True, slots=True)
class LoadShape:
    """What was sent: `LoadSettings` without the texts themselves; see there."""

    target: str
    num_texts: int
    texts_per_request: int
    warmup_s: float
    duration_s: float
    num_requests: int | None
    timeout_s: float
    is_streamed: bool
    seed: int
    slo_ms: float | None


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was answered within the measurement, a second.

    Attributes:
        requests_per_second: Requests.
        texts_per_second: Texts.
        tokens_per_second: Tokens, special ones included, padding not.
        goodput_per_second: Requests answered within the `slo_ms`; None if there is none.
        goodput_fraction: Share of all requests due that were answered within it; None likewise.
    """

    requests_per_second: float
    texts_per_second: float
    tokens_per_second: float
    goodput_per_second: float | None
    goodput_fraction: float | None


@dataclass(frozen=True, slots=True)
class ServerSide:
    """Where the server says the time went; of each request, its slowest text.

    Attributes:
        tokenize_ms: Until its texts were tokens.
        queue_ms: Until its batch was given to the engine.
        compute_ms: In the engine.
        total_ms: From arrival until the result was ready to be sent.
        outside_ms: The latency seen here, less `total_ms`: network, gRPC and this generator.
        batch_size: Texts in the batch.
        padding_fraction: Share of the batch's tokens that were padding.
    """

    tokenize_ms: Quantiles
    queue_ms: Quantiles
    compute_ms: Quantiles
    total_ms: Quantiles
    outside_ms: Quantiles
    batch_size: Quantiles
    padding_fraction: Quantiles


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Mean times of some of the requests; they add up to the mean latency of these.

    Attributes:
        requests: Which: "all", "typical" (the fifth around the median) or "slowest 1%".
        tokenize_ms: As in `ServerSide`, like the next two.
        queue_ms: Until the batch was given to the engine.
        compute_ms: In the engine.
        rest_ms: The rest of the server's own total.
        outside_ms: Network, gRPC and this generator.
    """

    requests: str
    tokenize_ms: float
    queue_ms: float
    compute_ms: float
    rest_ms: float
    outside_ms: float


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """One interval of the measurement.

    Attributes:
        start_s: Its start, since the measurement began.
        length_s: Its length.
        answered: Requests answered in it.
        failed: Requests that failed in it.
        p50_ms: Median latency of what was answered; None if nothing was.
        p99_ms: 99th percentile likewise.
    """

    start_s: float
    length_s: float
    answered: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a run found.

    Latency counts from the time that a request was due until its answer was read, over all answered
    requests that were due within the measurement, also those answered after it.

    Attributes:
        schema: Name and version of the written form.
        started_at: Start of the run, ISO 8601, UTC.
        is_interrupted: The run was told to stop before its end.
        duration_s: How long was measured, without warm-up.
        served: What answered.
        pace: When requests were sent.
        load: What was sent.
        counts: What became of the requests.
        latency_ms: None if none was answered, as in what follows.
        latency_curve_ms: Pairs of percentile and latency.
        latency_histogram: With edges evenly spaced by ratio.
        throughput: What was answered a second.
        errors: Most frequent first.
        server: The server's own account of the time.
        breakdown: What the latency of typical, slowest and all requests is made of.
        generator: What generating the load took.
        timeline: The measurement, interval by interval.
        warnings: What to know before the numbers are believed.
    """

    schema: str
    started_at: str
    is_interrupted: bool
    duration_s: float
    served: Served
    pace: Pace
    load: LoadShape
    counts: Counts
    latency_ms: Quantiles | None
    latency_curve_ms: tuple[tuple[float, float], ...]
    latency_histogram: Histogram | None
    throughput: Throughput
    errors: tuple[ErrorCount, ...]
    server: ServerSide | None
    breakdown: tuple[Breakdown, ...]
    generator: Generator
    timeline: tuple[TimelinePoint, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """The result as JSON; the keys are the names of the attributes."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)
