"""How the charts of a report are drawn: as SVG that takes its colours from the page around it.

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
from matplotlib.ticker import NullFormatter

from .records import Histogram

__all__ = [
    "MUTED",
    "SERIES",
    "begin_at_zero",
    "draw_histogram",
    "mark_objective",
    "or_gap",
    "svg_of",
]

_INK, MUTED, _GRID = "#000001", "#000002", "#000003"
SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015")
_VARIABLES = {
    _INK: "--ink",
    MUTED: "--muted",
    _GRID: "--grid",
    **{stand_in: f"--series-{i}" for i, stand_in in enumerate(SERIES, start=1)},
}
_STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "font.size": 10.0,
    "text.color": _INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
}


def svg_of(
    name: str, draw: Callable[[Figure], None], height: float = 3.4, *, is_wide: bool = False
) -> str:
    """A chart as inline SVG.

    Args:
        name: Unlike that of any other chart of the page: its ids begin with it.
        draw: Draws on an empty figure.
        height: In inches; the width is 5.4 (half the page), or 9.6.
        is_wide: Whether it takes the page's whole width.
    """
    with style.context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(9.6 if is_wide else 5.4, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def draw_histogram(axes: Axes, histogram: Histogram, measure: str, counted: str) -> None:
    """Bars over a logarithmic axis; `measure` and `counted` name the two."""
    edges = histogram.edges_ms
    axes.bar(
        edges[:-1],
        histogram.counts,
        width=[0.94 * (high - low) for low, high in pairwise(edges)],
        align="edge",
        color=SERIES[0],
    )
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_xticks(edges[::4], [f"{edge:.3g}" for edge in edges[::4]])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(f"{measure}, ms")
    axes.set_ylabel(counted)


def mark_objective(axes: Axes, slo_ms: float) -> None:
    """A line across the chart where an objective of its vertical axis lies, if it is in sight."""
    top = axes.get_ylim()[1]
    if slo_ms > 2 * top:
        return
    axes.set_ylim(top=max(top, 1.15 * slo_ms))
    axes.axhline(slo_ms, color=SERIES[1], linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"objective {slo_ms:g} ms",
        (0, slo_ms),
        xycoords=("axes fraction", "data"),
        xytext=(4, 4),
        textcoords="offset points",
        color=MUTED,
    )


def begin_at_zero(axes: Axes) -> None:
    """The vertical axis, from 0 to a little above what was drawn."""
    axes.set_ylim(0, 1.06 * axes.dataLim.y1 or 1.0)


def or_gap(value: float | None) -> float:
    """A value to draw; None leaves a gap in the line."""
    return float("nan") if value is None else value


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
