"""The charts of a report, as SVG that takes its colours from the page around it.

Matplotlib draws in stand-in colours; each becomes a CSS variable, so that one picture fits a light
and a dark page. Text stays text.
"""

import io
import re
from collections.abc import Callable
from itertools import pairwise

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from .result import LoadResult

__all__ = ["charts"]

_INK, _MUTED, _GRID = "#000001", "#000002", "#000003"
_SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015")
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--grid",
    **{stand_in: f"--series-{i}" for i, stand_in in enumerate(_SERIES, start=1)},
}
_STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "font.size": 10.0,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "legend.labelcolor": _MUTED,
}


def charts(result: LoadResult) -> dict[str, str]:
    """Inline SVG by name; without the charts for which there is no data."""
    drawn: dict[str, Callable[[Figure, LoadResult], None]] = {}
    if result.latency_ms is not None:
        drawn |= {
            "percentiles": _draw_percentiles,
            "histogram": _draw_histogram,
            "breakdown": _draw_breakdown,
        }
    if result.timeline:
        drawn["timeline"] = _draw_timeline
    return {name: _svg(name, draw, result) for name, draw in drawn.items()}


def _svg(name: str, draw: Callable[[Figure, LoadResult], None], result: LoadResult) -> str:
    height = {"timeline": 5.2, "breakdown": 2.3}.get(name, 3.4)
    with style.context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(9.6 if height != 3.4 else 5.4, height), layout="constrained")
        draw(figure, result)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="(?!\w*-)', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return svg


def _draw_percentiles(figure: Figure, result: LoadResult) -> None:
    axes = figure.subplots()
    curve = [(percent, ms) for percent, ms in result.latency_curve_ms if percent < 100]
    # 0, 90, 99, 99.9 ... at equal distances: the tail is what the chart is for.
    axes.plot([1 / (1 - p / 100) for p, _ in curve], [ms for _, ms in curve], color=_SERIES[0])
    axes.set_xscale("log")
    shown = [p for p in (0, 50, 90, 99, 99.9, 99.99) if p <= curve[-1][0]]
    axes.set_xticks([1 / (1 - p / 100) for p in shown], [f"{p:g}" for p in shown])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_xlabel("percentile")
    axes.set_ylabel("latency, ms")
    axes.set_ylim(bottom=0)
    if result.load.slo_ms is not None:
        _mark(axes, result.load.slo_ms)


def _mark(axes: Axes, slo_ms: float) -> None:
    axes.axhline(slo_ms, color=_SERIES[1], linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"objective {slo_ms:g} ms",
        (0, slo_ms),
        xycoords=("axes fraction", "data"),
        xytext=(4, 4),
        textcoords="offset points",
        color=_MUTED,
    )


def _draw_histogram(figure: Figure, result: LoadResult) -> None:
    axes = figure.subplots()
    histogram = result.latency_histogram
    assert histogram is not None
    edges = histogram.edges_ms
    axes.bar(
        edges[:-1],
        histogram.counts,
        width=[0.94 * (high - low) for low, high in pairwise(edges)],
        align="edge",
        color=_SERIES[0],
    )
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_xticks(edges[::4], [f"{edge:.3g}" for edge in edges[::4]])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("requests")


def _draw_breakdown(figure: Figure, result: LoadResult) -> None:
    axes = figure.subplots()
    rows = [
        (each.tokenize_ms, each.queue_ms, each.compute_ms, each.rest_ms, each.outside_ms)
        for each in result.breakdown
    ]
    names = ("tokenize", "queue", "compute", "rest of server", "network and client")
    left = [0.0] * len(rows)
    for part, (name, color) in enumerate(zip(names, _SERIES, strict=True)):
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
    upper.plot(middles, [p.answered / p.length_s for p in points], color=_SERIES[0])
    upper.lines[-1].set_label("answered")
    if any(point.failed for point in points):
        upper.plot(middles, [p.failed / p.length_s for p in points], color=_SERIES[1])
        upper.lines[-1].set_label("failed")
    upper.set_ylabel("requests/s")
    lower.plot(middles, [_or_gap(p.p99_ms) for p in points], color=_SERIES[3], label="p99")
    lower.plot(middles, [_or_gap(p.p50_ms) for p in points], color=_SERIES[0], label="p50")
    lower.set_ylabel("latency, ms")
    lower.set_xlabel("seconds since the measurement began")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, result.duration_s or None)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2)


def _or_gap(value: float | None) -> float:
    return float("nan") if value is None else value
