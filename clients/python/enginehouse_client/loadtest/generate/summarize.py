"""From the rows and tokens of a load of Generate to its result."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from enginehouse.v1.generate_pb2 import FinishReason
from enginehouse_client.loadtest.measures import (
    error_counts,
    generator_of,
    histogram_of,
    intervals,
    percentiles,
    quantiles,
    warnings_of,
)
from enginehouse_client.loadtest.records import Pace, Quantiles, Served
from enginehouse_client.loadtest.samples import Samples
from enginehouse_client.loadtest.window import Window

from .recorder import CANCELLED, CELL_S, Recorder
from .result import (
    SCHEMA,
    GenerateCounts,
    GenerateResult,
    GenerateShape,
    PromptLength,
    ServerTimes,
    Throughput,
    TimelinePoint,
    Tokens,
)
from .settings import GenerateSettings

__all__ = ["summarize"]

_MAX_PROMPT_LENGTHS = 16


def summarize(
    settings: GenerateSettings, pace: Pace, served: Served, window: Window, recorder: Recorder
) -> GenerateResult:
    """The result of a run that is over."""
    everything = recorder.samples()
    due = everything.where(everything["scheduled"] >= window.measured_from)
    answered = due.where(due.is_answered)
    counts = _counts(due, window)
    errors = error_counts(due)
    generator = generator_of(due, window)
    ttft_ms = _ttft_ms(due)
    timeline = tuple(_timeline(everything, recorder, window))
    return GenerateResult(
        schema=SCHEMA,
        started_at=window.started_at.isoformat(timespec="seconds"),
        is_interrupted=window.is_interrupted,
        duration_s=window.duration_s,
        served=served,
        pace=pace,
        load=_shape(settings),
        counts=counts,
        finish_reasons=_finish_reasons(answered),
        ttft_ms=quantiles(ttft_ms[np.isfinite(ttft_ms)]),
        itl_ms=recorder.itl.quantiles_ms(),
        e2e_latency_ms=quantiles(answered.latency_ms),
        ttft_histogram=histogram_of(ttft_ms[np.isfinite(ttft_ms)]),
        itl_histogram=recorder.itl.histogram(),
        ttft_by_prompt=tuple(_by_prompt(due)),
        throughput=_throughput(everything, counts, timeline, window, settings),
        tokens=_tokens(answered),
        errors=errors,
        server=_server_times(answered),
        generator=generator,
        timeline=timeline,
        warnings=(
            *warnings_of(pace, counts, errors, generator, window),
            *_warnings(settings, everything, answered),
        ),
    )


def _shape(settings: GenerateSettings) -> GenerateShape:
    is_random = not settings.prompts
    return GenerateShape(
        target=settings.target,
        num_prompts=None if is_random else len(settings.prompts),
        prompt_tokens=str(settings.prompt_tokens) if is_random else None,
        shared_prefix_tokens=settings.shared_prefix_tokens if is_random else None,
        shared_fraction=settings.shared_fraction if is_random else None,
        output_tokens=str(settings.output_tokens),
        num_distinct=settings.num_distinct,
        is_streamed=settings.is_streamed,
        ignore_eos=settings.ignore_eos,
        temperature=settings.temperature,
        top_p=settings.top_p,
        sampling_seed=settings.sampling_seed,
        cancel_fraction=settings.cancel_fraction,
        warmup_s=settings.warmup_s,
        duration_s=settings.duration_s,
        num_requests=settings.num_requests,
        timeout_s=settings.timeout_s,
        seed=settings.seed,
        slo_ttft_ms=settings.slo_ttft_ms,
        slo_itl_ms=settings.slo_itl_ms,
    )


def _counts(due: Samples, window: Window) -> GenerateCounts:
    outcome = due["outcome"]
    return GenerateCounts(
        due=window.num_due,
        answered=int(due.is_answered.sum()),
        failed=int((outcome > 0).sum()),
        cancelled=int((outcome == CANCELLED).sum()),
        unsent=window.num_unsent,
        unfinished=window.num_unfinished,
    )


def _ttft_ms(samples: Samples) -> NDArray[np.float64]:
    """Time to the first token, `[requests]`; NaN where none came."""
    return (samples["first"] - samples["scheduled"]) * 1e3


def _finish_reasons(answered: Samples) -> dict[str, int]:
    reasons, numbers = np.unique(answered["finish_reason"].astype(np.int64), return_counts=True)
    prefix = "FINISH_REASON_"
    return {
        FinishReason.Name(reason).removeprefix(prefix).lower(): number
        for reason, number in zip(reasons.tolist(), numbers.tolist(), strict=True)
    }


def _by_prompt(due: Samples) -> Iterator[PromptLength]:
    reached = due.where(np.isfinite(due["first"]))
    lengths, ttft_ms = reached["prompt_tokens"], _ttft_ms(reached)
    if not len(lengths):
        return
    groups = lengths
    if len(np.unique(lengths)) > _MAX_PROMPT_LENGTHS:
        # About equally many prompts in each.
        shares = np.linspace(0, 100, _MAX_PROMPT_LENGTHS + 1)[1:-1]
        edges = percentiles(lengths, shares.tolist())
        groups = np.searchsorted(edges, lengths, side="right").astype(np.float64)
    for group in np.unique(groups):
        chosen = groups == group
        p50, p90 = percentiles(ttft_ms[chosen], (50, 90))
        yield PromptLength(
            min_tokens=int(lengths[chosen].min()),
            max_tokens=int(lengths[chosen].max()),
            count=int(chosen.sum()),
            p50_ms=p50,
            p90_ms=p90,
        )


def _throughput(
    everything: Samples,
    counts: GenerateCounts,
    timeline: tuple[TimelinePoint, ...],
    window: Window,
    settings: GenerateSettings,
) -> Throughput:
    seconds = max(window.duration_s, 1e-9)
    done = everything["done"]
    is_within = everything.is_answered & (done >= window.measured_from) & (done <= window.end)
    goodput = fraction = None
    if settings.slo_ttft_ms is not None or settings.slo_itl_ms is not None:
        is_good = everything.is_answered & _meets(everything, settings)
        is_due = everything["scheduled"] >= window.measured_from
        num_asked = counts.due - counts.cancelled - counts.unfinished
        goodput = float((is_good & is_within).sum()) / seconds
        fraction = float((is_good & is_due).sum()) / max(num_asked, 1)
    output = sum(point.output_tokens for point in timeline)
    prompt = sum(point.prompt_tokens for point in timeline)
    return Throughput(
        requests_per_second=float(is_within.sum()) / seconds,
        output_tokens_per_second=output / seconds,
        total_tokens_per_second=(output + prompt) / seconds,
        goodput_per_second=goodput,
        goodput_fraction=fraction,
    )


def _meets(samples: Samples, settings: GenerateSettings) -> NDArray[np.bool_]:
    """Which requests were within the objectives, `[requests]`."""
    is_good = np.ones(len(samples.rows), dtype=np.bool_)
    if settings.slo_ttft_ms is not None:
        is_good &= _ttft_ms(samples) <= settings.slo_ttft_ms
    if settings.slo_itl_ms is not None:
        # An answer of one message has no time between tokens, and so none that is too long.
        is_good &= ~(samples["mean_itl_ms"] > settings.slo_itl_ms)
    return is_good


def _tokens(answered: Samples) -> Tokens:
    def total(column: str) -> int:
        return int(answered[column].sum())

    return Tokens(
        prompt=total("prompt_tokens"),
        output=total("output_tokens"),
        server_prompt=total("server_prompt_tokens"),
        server_generated=total("generated_tokens"),
        cached=total("cached_tokens"),
        num_preemptions=total("num_preemptions"),
    )


def _server_times(answered: Samples) -> ServerTimes | None:
    def of(values: NDArray[np.float64]) -> Quantiles:
        found = quantiles(values)
        assert found is not None
        return found

    if not len(answered.rows):
        return None
    itl_ms = answered["server_itl_ms"]
    return ServerTimes(
        queue_ms=of(answered["queue_ms"]),
        prefill_ms=of(answered["prefill_ms"]),
        ttft_ms=of(answered["server_ttft_ms"]),
        mean_itl_ms=quantiles(itl_ms[np.isfinite(itl_ms)]),
        total_ms=of(answered["total_ms"]),
        outside_ms=of(answered.latency_ms - answered["total_ms"]),
    )


def _timeline(everything: Samples, recorder: Recorder, window: Window) -> Iterator[TimelinePoint]:
    ended = everything["done"] - window.measured_from
    outcome = everything["outcome"]
    tokens = recorder.tokens_over_time()
    for start_s, end_s in intervals(window, CELL_S):
        is_inside = (ended >= start_s) & (ended < end_s)
        end_cell = round(end_s / CELL_S) if end_s < window.duration_s else tokens.shape[1]
        prompt, output = tokens[:, round(start_s / CELL_S) : end_cell].sum(axis=1).tolist()
        yield TimelinePoint(
            start_s=start_s,
            length_s=end_s - start_s,
            output_tokens=output,
            prompt_tokens=prompt,
            answered=int((is_inside & everything.is_answered).sum()),
            failed=int((is_inside & (outcome > 0)).sum()),
            cancelled=int((is_inside & (outcome == CANCELLED)).sum()),
        )


def _warnings(settings: GenerateSettings, everything: Samples, answered: Samples) -> Iterator[str]:
    num_sent = len(everything.rows)
    if num_sent > settings.num_distinct and not settings.prompts:
        yield (
            f"{settings.num_distinct} different requests were sent {num_sent} times: a server that"
            " keeps prompts in its cache computed less of a repeated one. --distinct makes more."
        )
    num_short = int((answered["output_tokens"] < answered["asked_tokens"]).sum())
    if settings.ignore_eos and num_short:
        yield (
            f"{num_short} of {len(answered.rows)} answers have fewer tokens than were asked for,"
            " although the end of sequence was to be ignored."
        )
