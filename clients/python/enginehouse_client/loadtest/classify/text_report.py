"""What a load of Classify found, as plain text for the terminal."""

from collections.abc import Iterator

from enginehouse_client.loadtest.lines import (
    error_lines,
    figures_line,
    generator_lines,
    headings_line,
    pace_words,
    served_line,
)

from .result import LoadResult

__all__ = ["pace_in_words", "text_report"]


def text_report(result: LoadResult) -> str:
    """The result, a line for each thing to know."""
    return "\n".join(_lines(result))


def pace_in_words(result: LoadResult) -> str:
    """What the load was, as one phrase."""
    load = result.load
    how = "over one stream" if load.is_streamed else "a call each"
    texts = "1 text" if load.texts_per_request == 1 else f"{load.texts_per_request} texts"
    return f"{pace_words(result.pace)}, {texts} a request, {how}"


def _lines(result: LoadResult) -> Iterator[str]:
    counts, rate = result.counts, result.throughput
    yield served_line(result.served, result.load.target)
    yield f"{pace_in_words(result)}; measured {result.duration_s:.1f} s"
    yield ""
    yield (
        f"  throughput  {rate.requests_per_second:,.1f} requests/s"
        f"  {rate.texts_per_second:,.1f} texts/s  {rate.tokens_per_second:,.0f} tokens/s"
    )
    if rate.goodput_per_second is not None and rate.goodput_fraction is not None:
        yield (
            f"  goodput     {rate.goodput_per_second:,.1f} requests/s within {result.load.slo_ms:g}"
            f" ms, {rate.goodput_fraction:.2%} of all due"
        )
    yield (
        f"  requests    {counts.answered:,} answered  {counts.failed:,} failed"
        f"  {counts.unsent:,} not sent  {counts.unfinished:,} unfinished"
    )
    yield from error_lines(result.errors)
    yield ""
    yield from _tables(result)
    yield from generator_lines(result.generator, result.pace)
    yield from (f"warning: {warning}" for warning in result.warnings)


def _tables(result: LoadResult) -> Iterator[str]:
    if result.latency_ms is None or result.server is None:
        yield "  No request was answered."
        yield ""
        return
    server = result.server
    yield headings_line("ms")
    yield figures_line("latency", result.latency_ms)
    yield figures_line("  server tokenize", server.tokenize_ms)
    yield figures_line("  server queue", server.queue_ms)
    yield figures_line("  server compute", server.compute_ms)
    yield figures_line("  server total", server.total_ms)
    yield figures_line("  outside server", server.outside_ms)
    yield figures_line("texts in a batch", server.batch_size, ".1f")
    yield figures_line("padding", server.padding_fraction, ".1%")
    yield ""
