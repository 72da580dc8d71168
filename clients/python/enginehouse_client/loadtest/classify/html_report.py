"""What a load of Classify found, as one HTML page."""

from enginehouse_client.loadtest.page import (
    Card,
    Figures,
    Page,
    generator_in_words,
    render,
    served_facts,
)

from .charts import charts
from .result import LoadResult
from .text_report import pace_in_words

__all__ = ["html_report"]


def html_report(result: LoadResult) -> str:
    """The page."""
    load = result.load
    is_open = result.pace.mode == "open"
    return render(
        Page(
            title=f"Load test of {result.served.model}/{result.served.version}",
            subtitle=(
                f"{pace_in_words(result)}. Measured {result.duration_s:.1f} s after"
                f" {load.warmup_s:g} s of warm-up, {result.started_at}."
            ),
            cards=_cards(result),
            warnings=result.warnings,
            charts=charts(result),
            figures=_figures(result),
            errors=result.errors,
            facts=_facts(result),
            note=f"Latency counts from the time a request was due until its answer was read"
            f"{_OPEN_NOTE if is_open else _CLOSED_NOTE}",
        )
    )


_OPEN_NOTE = ", so a stalled server or a late generator cannot hide."
_CLOSED_NOTE = (
    ". A closed load sends a slower server less: for what users feel at a given rate, measure with"
    " an open one."
)


def _cards(result: LoadResult) -> tuple[Card, ...]:
    rate, latency_ms = result.throughput, result.latency_ms
    cards = []
    if latency_ms is not None:
        cards.append(Card("Latency p50", f"{latency_ms.p50:,.2f}", "ms"))
        cards.append(Card("Latency p99", f"{latency_ms.p99:,.2f}", "ms"))
    cards.append(Card("Requests/s", f"{rate.requests_per_second:,.1f}"))
    cards.append(Card("Tokens/s", f"{rate.tokens_per_second:,.0f}"))
    if rate.goodput_fraction is not None:
        cards.append(Card(f"Within {result.load.slo_ms:g} ms", f"{rate.goodput_fraction:.2%}"))
    return (*cards, Card("Failed", f"{result.counts.failed:,}"))


def _figures(result: LoadResult) -> tuple[Figures, ...]:
    if result.latency_ms is None or result.server is None:
        return ()
    server = result.server
    return (
        Figures("Latency, ms", "{:,.2f}", result.latency_ms, is_main=True),
        Figures("Server: tokenize, ms", "{:,.2f}", server.tokenize_ms),
        Figures("Server: queue, ms", "{:,.2f}", server.queue_ms),
        Figures("Server: compute, ms", "{:,.2f}", server.compute_ms),
        Figures("Server: total, ms", "{:,.2f}", server.total_ms),
        Figures("Network and client, ms", "{:,.2f}", server.outside_ms),
        Figures("Texts in a batch", "{:,.1f}", server.batch_size),
        Figures("Padding", "{:.1%}", server.padding_fraction),
    )


def _facts(result: LoadResult) -> tuple[tuple[str, str], ...]:
    counts, load = result.counts, result.load
    requests = (
        f"{counts.answered:,} answered, {counts.failed:,} failed, {counts.unsent:,} not sent,"
        f" {counts.unfinished:,} unfinished"
    )
    texts = f"{load.num_texts} different, {load.texts_per_request} a request, seed {load.seed}"
    return (
        *served_facts(result.served, load.target),
        ("Requests", requests),
        ("Texts", texts),
        ("Generator", generator_in_words(result.generator)),
        ("Deadline", f"{load.timeout_s:g} s"),
    )
