"""From the rows of a run to its result."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .result import (
    SCHEMA,
    Breakdown,
    Counts,
    ErrorCount,
    Generator,
    Histogram,
    LoadResult,
    LoadShape,
    Pace,
    Quantiles,
    Served,
    ServerSide,
    Throughput,
    TimelinePoint,
)
from .samples import Recorder, Samples
from .settings import LoadSettings
from .window import Window

__all__ = ["summarize"]

_CURVE = (
    *(0, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 98.5),
    *(99, 99.2, 99.4, 99.5, 99.6, 99.7, 99.8, 99.85, 99.9, 99.95, 99.98, 99.99, 100),
)
_NUM_BINS = 32
_MAX_TIMELINE_POINTS = 120
_MAX_LAG_MS = 10.0
_MAX_CPU_SHARE = 0.9


def summarize(
    settings: LoadSettings, pace: Pace, served: Served, window: Window, recorder: Recorder
) -> LoadResult:
    """The result of a run that is over."""
    everything = recorder.samples()
    due = everything.where(everything["scheduled"] >= window.measured_from)
    answered = due.where(due.is_answered)
    counts = Counts(
        answered=len(answered.rows),
        failed=len(due.rows) - len(answered.rows),
        unsent=recorder.num_unsent_since(window.measured_from),
        unfinished=window.num_unfinished,
    )
    errors = _errors(due)
    generator = _generator(due, window)
    return LoadResult(
        schema=SCHEMA,
        started_at=window.started_at.isoformat(timespec="seconds"),
        is_interrupted=window.is_interrupted,
        duration_s=window.duration_s,
        served=served,
        pace=pace,
        load=_load_shape(settings),
        counts=counts,
        latency_ms=_quantiles(answered.latency_ms),
        latency_curve_ms=_curve(answered.latency_ms),
        latency_histogram=_histogram(answered.latency_ms),
        throughput=_throughput(everything, counts, window, settings.slo_ms),
        errors=errors,
        server=_server_side(answered),
        breakdown=tuple(_breakdowns(answered)),
        generator=generator,
        timeline=tuple(_timeline(everything, window)),
        warnings=tuple(_warnings(pace, counts, errors, generator, window)),
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


def _percentiles(values: NDArray[np.float64], percents: tuple[float, ...]) -> list[float]:
    found = np.percentile(values, percents, method="inverted_cdf")
    return [float(value) for value in found]


def _quantiles(values: NDArray[np.float64]) -> Quantiles | None:
    if not len(values):
        return None
    return Quantiles(float(values.mean()), *_percentiles(values, (50, 90, 99, 99.9, 100)))


def _curve(latency_ms: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    if not len(latency_ms):
        return ()
    # Beyond 1 - 1/n a percentile is the maximum again, and says nothing.
    told = tuple(p for p in _CURVE if p == 100 or len(latency_ms) * (1 - p / 100) >= 1)
    return tuple(zip(told, _percentiles(latency_ms, told), strict=True))


def _histogram(latency_ms: NDArray[np.float64]) -> Histogram | None:
    if not len(latency_ms):
        return None
    # A little wider than the values, so that rounding leaves none of them outside.
    low, high = max(float(latency_ms.min()), 1e-3) * 0.999, float(latency_ms.max()) * 1.001
    edges = np.geomspace(low, max(high, low * 1.01), _NUM_BINS + 1)
    counts, _ = np.histogram(np.maximum(latency_ms, edges[0]), edges)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


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
        fraction = num_good / max(counts.answered + counts.failed + counts.unsent, 1)
    return Throughput(
        requests_per_second=len(inside.rows) / seconds,
        texts_per_second=float(inside["num_texts"].sum()) / seconds,
        tokens_per_second=float(inside["num_tokens"].sum()) / seconds,
        goodput_per_second=goodput,
        goodput_fraction=fraction,
    )


def _errors(due: Samples) -> tuple[ErrorCount, ...]:
    numbers = np.bincount(due["outcome"].astype(np.intp), minlength=len(due.errors) + 1)[1:]
    found = [
        ErrorCount(kind.error, kind.code, int(number), kind.example)
        for kind, number in zip(due.errors, numbers, strict=True)
        if number
    ]
    return tuple(sorted(found, key=lambda each: -each.count))


def _server_side(answered: Samples) -> ServerSide | None:
    def column(name: str) -> Quantiles:
        found = _quantiles(answered[name])
        assert found is not None
        return found

    if not len(answered.rows):
        return None
    outside = _quantiles(answered.latency_ms - answered["total_ms"])
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
    from_ms, to_ms, slow_ms = _percentiles(latency_ms, (40, 60, 99))
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


def _generator(due: Samples, window: Window) -> Generator:
    lag = _quantiles((due["sent"] - due["scheduled"]) * 1e3)
    return Generator(
        cpu_share=window.cpu_share,
        cpu_us_per_request=window.cpu_s * 1e6 / max(len(due.rows), 1),
        send_lag_ms=lag,
        has_kept_up=window.cpu_share <= _MAX_CPU_SHARE and (not lag or lag.p99 <= _MAX_LAG_MS),
    )


def _timeline(everything: Samples, window: Window) -> Iterator[TimelinePoint]:
    length_s = max(0.5, window.duration_s / _MAX_TIMELINE_POINTS)
    ended = everything["done"] - window.measured_from
    for start_s in np.arange(0.0, window.duration_s, length_s).tolist():
        end_s = min(start_s + length_s, window.duration_s)
        inside = everything.where((ended >= start_s) & (ended < end_s))
        latency_ms = inside.where(inside.is_answered).latency_ms
        p50, p99 = _percentiles(latency_ms, (50, 99)) if len(latency_ms) else (None, None)
        num_failed = len(inside.rows) - len(latency_ms)
        yield TimelinePoint(start_s, end_s - start_s, len(latency_ms), num_failed, p50, p99)


def _warnings(
    pace: Pace,
    counts: Counts,
    errors: tuple[ErrorCount, ...],
    generator: Generator,
    window: Window,
) -> Iterator[str]:
    total = max(counts.answered + counts.failed + counts.unsent, 1)
    if window.is_interrupted:
        yield f"Interrupted after {window.duration_s:.1f} s of measurement."
    if counts.failed:
        worst = errors[0]
        yield (
            f"{counts.failed} of {total} requests failed, most with {worst.error}: {worst.example}"
        )
    if counts.unsent:
        yield (
            f"{counts.unsent} of {total} requests were not sent, because {pace.max_in_flight} were"
            " unanswered: no latency above counts them."
        )
    if not generator.has_kept_up:
        lag = generator.send_lag_ms.p99 if generator.send_lag_ms else 0.0
        yield (
            f"The generator could not keep up: it used {generator.cpu_share:.0%} of a core and sent"
            f" its latest 1 % more than {lag:.1f} ms after they were due. Latencies include that."
        )
