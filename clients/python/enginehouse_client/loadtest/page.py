"""A report as one HTML page that needs nothing else: no script, no font, no address.

Knows what a page looks like, not what was measured.
"""

from dataclasses import dataclass
from importlib.resources import files

import jinja2
from markupsafe import Markup

from .records import ErrorCount, Generator, Quantiles, Served

__all__ = ["Card", "Chart", "Figures", "Page", "generator_in_words", "render", "served_facts"]


@dataclass(frozen=True, slots=True)
class Card:
    """A number worth a place at the top."""

    name: str
    value: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture, as inline SVG, and what it shows."""

    title: str
    svg: str


@dataclass(frozen=True, slots=True)
class Figures:
    """A row of the table: its name, how its numbers are written, and these."""

    name: str
    form: str
    quantiles: Quantiles
    is_main: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """The numbers as text, in the order of the table's columns."""
        each = self.quantiles
        values = (each.mean, each.p50, each.p90, each.p99, each.p99_9, each.max)
        return tuple(self.form.format(value) for value in values)


@dataclass(frozen=True, slots=True)
class Page:
    """What stands on the page, from top to bottom.

    Attributes:
        title: Of the page and its window.
        subtitle: What the load was, and when.
        cards: The numbers to see first.
        warnings: What to know before the numbers are believed.
        charts: Rows of them; two share a row's width.
        figures: The table of all measures.
        errors: Failures by their kind.
        facts: Pairs of name and text: what was measured, and with what.
        note: How to read the numbers.
    """

    title: str
    subtitle: str
    cards: tuple[Card, ...]
    warnings: tuple[str, ...]
    charts: tuple[tuple[Chart, ...], ...]
    figures: tuple[Figures, ...]
    errors: tuple[ErrorCount, ...]
    facts: tuple[tuple[str, str], ...]
    note: str


def render(page: Page) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("enginehouse_client.loadtest").joinpath("page.html.j2")
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return template.render(page=page, markup=Markup)


def served_facts(served: Served, target: str) -> tuple[tuple[str, str], ...]:
    """What answered."""
    engine = f"{served.backend} {served.runtime_version}, {served.precision}"
    return (
        ("Server", target),
        ("Model", f"{served.model}/{served.version} from {served.source}"),
        ("Engine", engine),
        ("Device", served.device),
    )


def generator_in_words(generator: Generator) -> str:
    """What generating the load took."""
    lag = generator.send_lag_ms
    late = f", sent {lag.p99:.2f} ms late at p99" if lag else ""
    share, cpu_us = generator.cpu_share, generator.cpu_us_per_request
    return f"{share:.0%} of a core, {cpu_us:.0f} µs a request{late}"
