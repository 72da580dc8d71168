"""A result as plain text for the terminal."""

from collections.abc import Iterator

from .result import LoadResult, Quantiles

__all__ = ["pace_in_words", "text_report"]

_HEADINGS = ("mean", "p50", "p90", "p99", "p99.9", "max")


def text_report(result: LoadResult) -> str:
    """The result, a line for each thing to know."""
    return "\n".join(_lines(result))


def pace_in_words(result: LoadResult) -> str:
    """What the load was, as one phrase."""
    pace, load = result.pace, result.load
    if pace.mode == "closed":
        who = f"{pace.concurrency} clients, each waiting for its answer"
    else:
        who = f"{pace.rate:g} requests/s at random times"
    how = "over one stream" if load.is_streamed else "a call each"
    texts = "1 text" if load.texts_per_request == 1 else f"{load.texts_per_request} texts"
    return f"{who}, {texts} a request, {how}"


def _lines(result: LoadResult) -> Iterator[str]:
    served, counts, rate = result.served, result.counts, result.throughput
    yield (
        f"{served.model}/{served.version} on {served.backend} {served.runtime_version}"
        f" ({served.precision}, {served.device}) at {result.load.target}"
    )
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
    yield from (f"  {each.count:>9,} x {each.error} ({each.code})" for each in result.errors)
    yield ""
    yield from _tables(result)
    yield from _generator_lines(result)
    yield from (f"warning: {warning}" for warning in result.warnings)


def _tables(result: LoadResult) -> Iterator[str]:
    if result.latency_ms is None or result.server is None:
        yield "  No request was answered."
        yield ""
        return
    server = result.server
    yield f"  {'ms':<18}" + "".join(f"{heading:>10}" for heading in _HEADINGS)
    for name, quantiles in (
        ("latency", result.latency_ms),
        ("  server tokenize", server.tokenize_ms),
        ("  server queue", server.queue_ms),
        ("  server compute", server.compute_ms),
        ("  server total", server.total_ms),
        ("  outside server", server.outside_ms),
    ):
        yield f"  {name:<18}" + "".join(f"{value:>10.2f}" for value in _values(quantiles))
    yield f"  {'texts in a batch':<18}" + "".join(f"{v:>10.1f}" for v in _values(server.batch_size))
    yield f"  {'padding':<18}" + "".join(f"{v:>10.1%}" for v in _values(server.padding_fraction))
    yield ""


def _values(quantiles: Quantiles) -> tuple[float, ...]:
    each = quantiles
    return each.mean, each.p50, each.p90, each.p99, each.p99_9, each.max


def _generator_lines(result: LoadResult) -> Iterator[str]:
    generator = result.generator
    lag = generator.send_lag_ms
    is_open = result.pace.mode == "open"
    late = f", sent {lag.p50:.2f} ms late (p99 {lag.p99:.2f})" if lag and is_open else ""
    yield (
        f"  generator   {generator.cpu_share:.0%} of a core,"
        f" {generator.cpu_us_per_request:.0f} µs a request{late}"
    )
    if not is_open:
        yield "  closed load: a slower server is sent less; for what users feel, use --rate"
