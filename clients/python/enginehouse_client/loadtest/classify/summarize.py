"""From the rows of a load of Classify to its result."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from enginehouse_client.loadtest.measures import (
    error_counts,
    generator_of,
    histogram_of,
    intervals,
    percentiles,
    quantiles,
    warnings_of,
)
from enginehouse_client.loadtest.records import Counts, Pace, Quantiles, Served
from enginehouse_client.loadtest.samples import Samples
from enginehouse_client.loadtest.window import Window

from .result import (
    SCHEMA,
    Breakdown,
    LoadResult,
    LoadShape,
    ServerSide,
    Throughput,
    TimelinePoint,
)
from .settings import LoadSettings

__all__ = ["summarize"]

_CURVE = (
    *(0, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 98.5),
    *(99, 99.2, 99.4, 99.5, 99.6, 99.7, 99.8, 99.85, 99.9, 99.95, 99.98, 99.99, 100),
)


def summarize(
    settings: LoadSettings, pace: Pace, served: Served, window: Window, everything: Samples
) -> LoadResult:
    """The result of a run that is over."""
    due = everything.where(everything["scheduled"] >= window.measured_from)
    answered = due.where(due.is_answered)
    counts = Counts(
        due=window.num_due,
        answered=len(answered.rows),
        failed=len(due.rows) - len(answered.rows),
        unsent=window.num_unsent,
        unfinished=window.num_unfinished,
    )
    errors = error_counts(due)
    generator = generator_of(due, window)
    return LoadResult(
        schema=SCHEMA,
        started_at=window.started_at.isoformat(timespec="seconds"),
        is_interrupted=window.is_interrupted,
        duration_s=window.duration_s,
        served=served,
        pace=pace,
        load=_load_shape(settings),
        counts=counts,
        latency_ms=quantiles(answered.latency_ms),
        latency_curve_ms=_curve(answered.latency_ms),
        latency_histogram=histogram_of(answered.latency_ms),
        throughput=_throughput(everything, counts, window, settings.slo_ms),
        errors=errors,
        server=_server_side(answered),
        breakdown=tuple(_breakdowns(answered)),
        generator=generator,
        timeline=tuple(_timeline(everything, window)),
        warnings=tuple(warnings_of(pace, counts, errors, generator, window)),
    )


def _load_shape(settings: LoadSettings) -> LoadShape:
    return LoadShape(
        target=settings.target,
        num_texts=len(settings.texts),
        texts_per_request=settings.texts_per_request,
        warmup_s=settings.warmup_s,
        duration_s=settings.duration_s,
        num_requests=settings.num_requests,
        timeout_s=settings.timeout_s,
        is_streamed=settings.is_streamed,
        seed=settings.seed,
        slo_ms=settings.slo_ms,
    )


def _curve(latency_ms: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    if not len(latency_ms):
        return ()
    # Beyond 1 - 1/n a percentile is the maximum again, and says nothing.
    told = tuple(p for p in _CURVE if p == 100 or len(latency_ms) * (1 - p / 100) >= 1)
    return tuple(zip(told, percentiles(latency_ms, told), strict=True))


def _throughput(
    everything: Samples, counts: Counts, window: Window, slo_ms: float | None
) -> Throughput:
    done = everything["done"]
    is_within = everything.is_answered & (done >= window.measured_from) & (done <= window.end)
    inside = everything.where(is_within)
    seconds = max(window.duration_s, 1e-9)
    goodput = fraction = None
    if slo_ms is not None:
        goodput = float((inside.latency_ms <= slo_ms).sum()) / seconds
        is_due = everything.is_answered & (everything["scheduled"] >= window.measured_from)
        num_good = float((everything.where(is_due).latency_ms <= slo_ms).sum())
        fraction = num_good / max(counts.due - counts.unfinished, 1)
    return Throughput(
        requests_per_second=len(inside.rows) / seconds,
        texts_per_second=float(inside["num_texts"].sum()) / seconds,
        tokens_per_second=float(inside["num_tokens"].sum()) / seconds,
        goodput_per_second=goodput,
        goodput_fraction=fraction,
    )


def _server_side(answered: Samples) -> ServerSide | None:
    def column(name: str) -> Quantiles:
        found = quantiles(answered[name])
        assert found is not None
        return found

    if not len(answered.rows):
        return None
    outside = quantiles(answered.latency_ms - answered["total_ms"])
    assert outside is not None
    return ServerSide(
        tokenize_ms=column("tokenize_ms"),
        queue_ms=column("queue_ms"),
        compute_ms=column("compute_ms"),
        total_ms=column("total_ms"),
        outside_ms=outside,
        batch_size=column("batch_size"),
        padding_fraction=column("padding_fraction"),
    )


def _breakdowns(answered: Samples) -> Iterator[Breakdown]:
    latency_ms = answered.latency_ms
    if not len(latency_ms):
        return
    from_ms, to_ms, slow_ms = percentiles(latency_ms, (40, 60, 99))
    for name, mask in (
        ("typical", (latency_ms >= from_ms) & (latency_ms <= to_ms)),
        ("all", latency_ms >= 0),
        ("slowest 1%", latency_ms >= slow_ms),
    ):
        some = answered.where(mask)
        tokenize_ms, queue_ms, compute_ms, total_ms = (
            float(some[column].mean())
            for column in ("tokenize_ms", "queue_ms", "compute_ms", "total_ms")
        )
        yield Breakdown(
            requests=name,
            tokenize_ms=tokenize_ms,
            queue_ms=queue_ms,
            compute_ms=compute_ms,
            rest_ms=total_ms - tokenize_ms - queue_ms - compute_ms,
            outside_ms=float(some.latency_ms.mean()) - total_ms,
        )


def _timeline(everything: Samples, window: Window) -> Iterator[TimelinePoint]:
    ended = everything["done"] - window.measured_from
    for start_s, end_s in intervals(window):
        inside = everything.where((ended >= start_s) & (ended < end_s))
        latency_ms = inside.where(inside.is_answered).latency_ms
        p50, p99 = percentiles(latency_ms, (50, 99)) if len(latency_ms) else (None, None)
        num_failed = len(inside.rows) - len(latency_ms)
        yield TimelinePoint(start_s, end_s - start_s, len(latency_ms), num_failed, p50, p99)
