"""A result as one HTML page that needs nothing else: no script, no font, no address."""

from importlib.resources import files

import jinja2
from markupsafe import Markup

from .charts import charts
from .result import LoadResult, Quantiles
from .text_report import pace_in_words

__all__ = ["html_report"]


def html_report(result: LoadResult) -> str:
    """The page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files("enginehouse_client.loadtest").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        result=result,
        pace=pace_in_words(result),
        rows=_rows(result),
        charts={name: Markup(svg) for name, svg in charts(result).items()},
    )


def _rows(result: LoadResult) -> list[tuple[str, str, Quantiles]]:
    if result.latency_ms is None or result.server is None:
        return []
    server = result.server
    return [
        ("Latency, ms", "{:,.2f}", result.latency_ms),
        ("Server: tokenize, ms", "{:,.2f}", server.tokenize_ms),
        ("Server: queue, ms", "{:,.2f}", server.queue_ms),
        ("Server: compute, ms", "{:,.2f}", server.compute_ms),
        ("Server: total, ms", "{:,.2f}", server.total_ms),
        ("Network and client, ms", "{:,.2f}", server.outside_ms),
        ("Texts in a batch", "{:,.1f}", server.batch_size),
        ("Padding", "{:.1%}", server.padding_fraction),
    ]
