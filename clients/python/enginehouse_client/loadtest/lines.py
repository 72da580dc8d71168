"""The lines that all text reports share."""

from collections.abc import Iterable, Iterator

from .records import ErrorCount, Generator, Pace, Quantiles, Served

__all__ = [
    "error_lines",
    "figures_line",
    "generator_lines",
    "headings_line",
    "pace_words",
    "served_line",
]

_HEADINGS = ("mean", "p50", "p90", "p99", "p99.9", "max")


def served_line(served: Served, target: str) -> str:
    """What answered."""
    return (
        f"{served.model}/{served.version} on {served.backend} {served.runtime_version}"
        f" ({served.precision}, {served.device}) at {target}"
    )


def pace_words(pace: Pace) -> str:
    """When requests were sent, as one phrase."""
    if pace.mode == "closed":
        return f"{pace.concurrency} clients, each waiting for its answer"
    return f"{pace.rate:g} requests/s at random times"


def error_lines(errors: Iterable[ErrorCount]) -> Iterator[str]:
    """A line for each kind of failure."""
    yield from (f"  {each.count:>9,} x {each.error} ({each.code})" for each in errors)


def headings_line(unit: str) -> str:
    """Above the lines of figures."""
    return f"  {unit:<18}" + "".join(f"{heading:>10}" for heading in _HEADINGS)


def figures_line(name: str, quantiles: Quantiles, form: str = ".2f") -> str:
    """A line of the table, numbers as `form` says."""
    each = quantiles
    values = (each.mean, each.p50, each.p90, each.p99, each.p99_9, each.max)
    return f"  {name:<18}" + "".join(f"{format(value, form):>10}" for value in values)


def generator_lines(generator: Generator, pace: Pace) -> Iterator[str]:
    """What generating the load took, and what a closed load hides."""
    lag = generator.send_lag_ms
    is_open = pace.mode == "open"
    late = f", sent {lag.p50:.2f} ms late (p99 {lag.p99:.2f})" if lag and is_open else ""
    yield (
        f"  generator   {generator.cpu_share:.0%} of a core,"
        f" {generator.cpu_us_per_request:.0f} µs a request{late}"
    )
    if not is_open:
        yield "  closed load: a slower server is sent less; for what users feel, use --rate"
