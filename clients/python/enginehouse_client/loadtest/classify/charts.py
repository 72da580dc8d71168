"""The charts of a load of Classify."""

from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from enginehouse_client.loadtest.drawing import (
    SERIES,
    draw_histogram,
    mark_objective,
    or_gap,
    svg_of,
)
from enginehouse_client.loadtest.page import Chart

from .result import LoadResult

__all__ = ["charts"]


def charts(result: LoadResult) -> tuple[tuple[Chart, ...], ...]:
    """Rows of charts; without those for which there is no data."""

    def svg(name: str, draw: Callable[[Figure, LoadResult], None], height: float = 3.4) -> str:
        return svg_of(name, lambda figure: draw(figure, result), height, is_wide=height != 3.4)

    rows: list[tuple[Chart, ...]] = []
    if result.latency_ms is not None:
        rows += [
            (
                Chart("Latency by percentile", svg("percentiles", _draw_percentiles)),
                Chart("Distribution of latency", svg("histogram", _draw_histogram)),
            ),
            (Chart("Where the time went", svg("breakdown", _draw_breakdown, 2.3)),),
        ]
    if result.timeline:
        rows.append((Chart("Over time", svg("timeline", _draw_timeline, 5.2)),))
    return tuple(rows)


def _draw_percentiles(figure: Figure, result: LoadResult) -> None:
    axes = figure.subplots()
    curve = [(percent, ms) for percent, ms in result.latency_curve_ms if percent < 100]
    # 0, 90, 99, 99.9 ... at equal distances: the tail is what the chart is for.
    axes.plot([1 / (1 - p / 100) for p, _ in curve], [ms for _, ms in curve], color=SERIES[0])
    axes.set_xscale("log")
    shown = [p for p in (0, 50, 90, 99, 99.9, 99.99) if p <= curve[-1][0]]
    axes.set_xticks([1 / (1 - p / 100) for p in shown], [f"{p:g}" for p in shown])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_xlabel("percentile")
    axes.set_ylabel("latency, ms")
    axes.set_ylim(bottom=0)
    if result.load.slo_ms is not None:
        mark_objective(axes, result.load.slo_ms)


def _draw_histogram(figure: Figure, result: LoadResult) -> None:
    assert result.latency_histogram is not None
    draw_histogram(figure.subplots(), result.latency_histogram, "latency", "requests")


def _draw_breakdown(figure: Figure, result: LoadResult) -> None:
    axes = figure.subplots()
    rows = [
        (each.tokenize_ms, each.queue_ms, each.compute_ms, each.rest_ms, each.outside_ms)
        for each in result.breakdown
    ]
    names = ("tokenize", "queue", "compute", "rest of server", "network and client")
    left = [0.0] * len(rows)
    for part, (name, color) in enumerate(zip(names, SERIES, strict=True)):
        shares = [100 * max(0.0, row[part]) / (sum(row) or 1.0) for row in rows]
        axes.barh(range(len(rows)), shares, left=left, height=0.62, color=color, label=name)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    labels = [
        f"{each.requests}: {sum(row):.2f} ms"
        for each, row in zip(result.breakdown, rows, strict=True)
    ]
    axes.set_yticks(range(len(rows)), labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=5, columnspacing=1.4, handlelength=1.0)


def _draw_timeline(figure: Figure, result: LoadResult) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True)
    points = result.timeline
    middles = [point.start_s + point.length_s / 2 for point in points]
    upper.plot(middles, [p.answered / p.length_s for p in points], color=SERIES[0])
    upper.lines[-1].set_label("answered")
    if any(point.failed for point in points):
        upper.plot(middles, [p.failed / p.length_s for p in points], color=SERIES[1])
        upper.lines[-1].set_label("failed")
    upper.set_ylabel("requests/s")
    lower.plot(middles, [or_gap(p.p99_ms) for p in points], color=SERIES[3], label="p99")
    lower.plot(middles, [or_gap(p.p50_ms) for p in points], color=SERIES[0], label="p50")
    lower.set_ylabel("latency, ms")
    lower.set_xlabel("seconds since the measurement began")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, result.duration_s or None)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2)
