"""What a load of Generate found, as one HTML page."""

from enginehouse_client.loadtest.page import (
    Card,
    Figures,
    Page,
    generator_in_words,
    render,
    served_facts,
)

from .charts import charts
from .result import GenerateResult
from .text_report import load_in_words, objectives_in_words, prompts_in_words

__all__ = ["html_report"]

_NOTE = (
    "Times count from when a request was due. The time between tokens is that between two messages"
    " of a stream, divided by the tokens of the later one."
)
_OPEN_NOTE = " A stalled server or a late generator cannot hide."
_CLOSED_NOTE = (
    " A closed load sends a slower server less: for what users feel at a given rate, measure with"
    " an open one."
)


def html_report(result: GenerateResult) -> str:
    """The page."""
    load = result.load
    return render(
        Page(
            title=f"Load test of {result.served.model}/{result.served.version}",
            subtitle=(
                f"{load_in_words(result)}: {prompts_in_words(load)}. Measured"
                f" {result.duration_s:.1f} s after {load.warmup_s:g} s of warm-up,"
                f" {result.started_at}."
            ),
            cards=_cards(result),
            warnings=result.warnings,
            charts=charts(result),
            figures=_figures(result),
            errors=result.errors,
            facts=_facts(result),
            note=_NOTE + (_OPEN_NOTE if result.pace.mode == "open" else _CLOSED_NOTE),
        )
    )


def _cards(result: GenerateResult) -> tuple[Card, ...]:
    rate = result.throughput
    cards = []
    for name, quantiles in (("First token", result.ttft_ms), ("Between tokens", result.itl_ms)):
        if quantiles is not None:
            cards.append(Card(f"{name} p50", f"{quantiles.p50:,.2f}", "ms"))
            cards.append(Card(f"{name} p99", f"{quantiles.p99:,.2f}", "ms"))
    cards.append(Card("Output tokens/s", f"{rate.output_tokens_per_second:,.0f}"))
    cards.append(Card("Requests/s", f"{rate.requests_per_second:,.2f}"))
    if rate.goodput_fraction is not None:
        cards.append(Card("Within objectives", f"{rate.goodput_fraction:.2%}"))
    return (*cards, Card("Failed", f"{result.counts.failed:,}"))


def _figures(result: GenerateResult) -> tuple[Figures, ...]:
    rows = [
        ("First token (ttft), ms", result.ttft_ms),
        ("Between tokens (itl), ms", result.itl_ms),
        ("Whole answer (e2e_latency), ms", result.e2e_latency_ms),
    ]
    num_main = len(rows)
    if (server := result.server) is not None:
        rows += [
            ("Server: queue, ms", server.queue_ms),
            ("Server: prefill, ms", server.prefill_ms),
            ("Server: first token, ms", server.ttft_ms),
            ("Server: mean between tokens, ms", server.mean_itl_ms),
            ("Server: total, ms", server.total_ms),
            ("Network and client, ms", server.outside_ms),
        ]
    return tuple(
        Figures(name, "{:,.2f}", quantiles, is_main=index < num_main)
        for index, (name, quantiles) in enumerate(rows)
        if quantiles is not None
    )


def _facts(result: GenerateResult) -> tuple[tuple[str, str], ...]:
    counts, load, tokens = result.counts, result.load, result.tokens
    requests = (
        f"{counts.due:,} due: {counts.answered:,} answered, {counts.failed:,} failed,"
        f" {counts.cancelled:,} cancelled, {counts.unsent:,} not sent,"
        f" {counts.unfinished:,} unfinished"
    )
    reasons = ", ".join(f"{count:,} {name}" for name, count in result.finish_reasons.items())
    server_tokens = (
        f"{tokens.server_prompt:,} of prompts ({tokens.cached:,} cached),"
        f" {tokens.server_generated:,} generated, {tokens.num_preemptions:,} preemptions"
    )
    return (
        *served_facts(result.served, load.target),
        ("Requests", requests),
        ("Answers ended by", reasons or "none ended"),
        ("Prompts", f"{prompts_in_words(load)}, {load.num_distinct} different, seed {load.seed}"),
        ("Tokens of answered requests", f"{tokens.prompt:,} sent, {tokens.output:,} received"),
        ("The server's count", server_tokens),
        ("Objectives", objectives_in_words(load) or "none"),
        ("Generator", generator_in_words(result.generator)),
        ("Deadline", f"{load.timeout_s:g} s"),
    )
