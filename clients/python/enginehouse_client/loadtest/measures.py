"""From the rows of a run to the parts that all results share."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .records import Counts, ErrorCount, Generator, Histogram, Pace, Quantiles
from .samples import Samples
from .window import Window

__all__ = [
    "NUM_BINS",
    "error_counts",
    "generator_of",
    "histogram_of",
    "intervals",
    "percentiles",
    "quantiles",
    "warnings_of",
]

NUM_BINS = 32
_MAX_TIMELINE_POINTS = 120
_MAX_LAG_MS = 10.0
_MAX_CPU_SHARE = 0.9


def percentiles(values: NDArray[np.float64], percents: Sequence[float]) -> list[float]:
    """Percentiles by nearest rank, of at least one value."""
    found = np.percentile(values, percents, method="inverted_cdf")
    return [float(value) for value in found]


def quantiles(values: NDArray[np.float64]) -> Quantiles | None:
    """What is told of values `[n]`; None of none."""
    if not len(values):
        return None
    return Quantiles(float(values.mean()), *percentiles(values, (50, 90, 99, 99.9, 100)))


def histogram_of(values_ms: NDArray[np.float64]) -> Histogram | None:
    """How values `[n]` are distributed, edges evenly spaced by ratio; None of none."""
    if not len(values_ms):
        return None
    # A little wider than the values, so that rounding leaves none of them outside.
    low, high = max(float(values_ms.min()), 1e-3) * 0.999, float(values_ms.max()) * 1.001
    edges = np.geomspace(low, max(high, low * 1.01), NUM_BINS + 1)
    counts, _ = np.histogram(np.maximum(values_ms, edges[0]), edges)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def error_counts(due: Samples) -> tuple[ErrorCount, ...]:
    """Failures by their kind, most frequent first."""
    outcomes = due["outcome"].astype(np.intp)
    numbers = np.bincount(outcomes[outcomes > 0], minlength=len(due.errors) + 1)[1:]
    found = [
        ErrorCount(kind.error, kind.code, int(number), kind.example)
        for kind, number in zip(due.errors, numbers, strict=True)
        if number
    ]
    return tuple(sorted(found, key=lambda each: -each.count))


def generator_of(due: Samples, window: Window) -> Generator:
    """What generating the load took."""
    lag = quantiles((due["sent"] - due["scheduled"]) * 1e3)
    return Generator(
        cpu_share=window.cpu_share,
        cpu_us_per_request=window.cpu_s * 1e6 / max(len(due.rows), 1),
        send_lag_ms=lag,
        has_kept_up=window.cpu_share <= _MAX_CPU_SHARE and (not lag or lag.p99 <= _MAX_LAG_MS),
    )


def intervals(window: Window, grain_s: float = 0.0) -> Iterator[tuple[float, float]]:
    """Start and end of each interval of a timeline, seconds since the measurement began.

    Args:
        window: The measurement.
        grain_s: Starts are multiples of it, if it is not 0.
    """
    length_s = max(0.5, window.duration_s / _MAX_TIMELINE_POINTS)
    if grain_s:
        length_s = math.ceil(length_s / grain_s - 1e-9) * grain_s
    # A rest of less than half a length belongs to the last: rates over it would jump.
    count = max(round(window.duration_s / length_s), 1 if window.duration_s else 0)
    for index in range(count):
        is_last = index == count - 1
        yield index * length_s, window.duration_s if is_last else (index + 1) * length_s


def warnings_of(
    pace: Pace,
    counts: Counts,
    errors: tuple[ErrorCount, ...],
    generator: Generator,
    window: Window,
) -> Iterator[str]:
    """What to know before the numbers are believed."""
    if window.is_interrupted:
        yield f"Interrupted after {window.duration_s:.1f} s of measurement."
    if counts.failed:
        worst = errors[0]
        yield (
            f"{counts.failed} of {counts.due} requests failed, most with {worst.error}:"
            f" {worst.example}"
        )
    if counts.unsent:
        yield (
            f"{counts.unsent} of {counts.due} requests were not sent, because"
            f" {pace.max_in_flight} were unanswered: no latency above counts them."
        )
    if not generator.has_kept_up:
        lag = generator.send_lag_ms.p99 if generator.send_lag_ms else 0.0
        yield (
            f"The generator could not keep up: it used {generator.cpu_share:.0%} of a core and sent"
            f" its latest 1 % more than {lag:.1f} ms after they were due. Latencies include that."
        )
