"""The charts of a load of Generate."""

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from enginehouse_client.loadtest.drawing import (
    SERIES,
    begin_at_zero,
    draw_histogram,
    mark_objective,
    svg_of,
)
from enginehouse_client.loadtest.page import Chart

from .result import GenerateResult, PromptLength

__all__ = ["charts"]


def charts(result: GenerateResult) -> tuple[tuple[Chart, ...], ...]:
    """Rows of charts; without those for which there is no data."""
    rows = (tuple(_distributions(result)), tuple(_over_prompts(result)), tuple(_over_time(result)))
    return tuple(row for row in rows if row)


def _distributions(result: GenerateResult) -> Iterator[Chart]:
    if (ttft := result.ttft_histogram) is not None:

        def draw_ttft(figure: Figure) -> None:
            draw_histogram(figure.subplots(), ttft, "time to the first token", "requests")

        yield Chart("Time to the first token", svg_of("ttft", draw_ttft))
    if (itl := result.itl_histogram) is not None:

        def draw_itl(figure: Figure) -> None:
            draw_histogram(figure.subplots(), itl, "time between tokens", "tokens")

        yield Chart("Time between tokens", svg_of("itl", draw_itl))


def _over_prompts(result: GenerateResult) -> Iterator[Chart]:
    lengths = result.ttft_by_prompt
    if len(lengths) > 1:

        def draw(figure: Figure) -> None:
            _draw_by_prompt(figure.subplots(), lengths, result.load.slo_ttft_ms)

        title = "Time to the first token by length of the prompt"
        yield Chart(title, svg_of("prompts", draw, is_wide=True))


def _draw_by_prompt(
    axes: Axes, lengths: tuple[PromptLength, ...], slo_ttft_ms: float | None
) -> None:
    tokens = [(each.min_tokens + each.max_tokens) / 2 for each in lengths]
    axes.plot(tokens, [each.p90_ms for each in lengths], color=SERIES[3], marker="o", label="p90")
    axes.plot(tokens, [each.p50_ms for each in lengths], color=SERIES[0], marker="o", label="p50")
    axes.set_xlabel("tokens of the prompt")
    axes.set_ylabel("time to the first token, ms")
    begin_at_zero(axes)
    if slo_ttft_ms is not None:
        mark_objective(axes, slo_ttft_ms)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2)


def _over_time(result: GenerateResult) -> Iterator[Chart]:
    if any(point.output_tokens for point in result.timeline):

        def draw(figure: Figure) -> None:
            _draw_timeline(figure, result)

        yield Chart("Over time", svg_of("timeline", draw, 6.6, is_wide=True))


def _draw_timeline(figure: Figure, result: GenerateResult) -> None:
    output, prompts, requests = figure.subplots(3, 1, sharex=True)
    points = result.timeline
    middles = [point.start_s + point.length_s / 2 for point in points]

    def draw(axes: Axes, counts: list[int], series: int, label: str) -> None:
        rates = [count / point.length_s for count, point in zip(counts, points, strict=True)]
        marker = "o" if len(points) == 1 else ""
        axes.plot(middles, rates, color=SERIES[series], marker=marker, label=label)

    draw(output, [point.output_tokens for point in points], 0, "tokens of answers")
    draw(prompts, [point.prompt_tokens for point in points], 2, "tokens of prompts")
    draw(requests, [point.answered for point in points], 0, "answered")
    if any(point.failed for point in points):
        draw(requests, [point.failed for point in points], 1, "failed")
    if any(point.cancelled for point in points):
        draw(requests, [point.cancelled for point in points], 3, "cancelled")
    requests.set_xlabel("seconds since the measurement began")
    for axes, unit in ((output, "tokens/s"), (prompts, "tokens/s"), (requests, "requests/s")):
        axes.set_ylabel(unit)
        begin_at_zero(axes)
        axes.set_xlim(0, result.duration_s or None)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=3)
    figure.align_ylabels()
