"""What a load of Generate found, as plain text for the terminal."""

from collections.abc import Iterator

from enginehouse_client.loadtest.lines import (
    error_lines,
    figures_line,
    generator_lines,
    headings_line,
    pace_words,
    served_line,
)

from .result import GenerateResult, GenerateShape

__all__ = ["load_in_words", "objectives_in_words", "prompts_in_words", "text_report"]


def text_report(result: GenerateResult) -> str:
    """The result, a line for each thing to know."""
    return "\n".join(_lines(result))


def load_in_words(result: GenerateResult) -> str:
    """What the load was, as one phrase."""
    how = "streamed" if result.load.is_streamed else "a call each"
    return f"{pace_words(result.pace)}, {how}"


def prompts_in_words(load: GenerateShape) -> str:
    """What was to be continued, and how far, as one phrase."""
    if load.prompt_tokens is None:
        what = f"{load.num_prompts} texts"
    else:
        what = f"random prompts of {load.prompt_tokens} tokens"
    if load.shared_prefix_tokens:
        what += (
            f" ({load.shared_fraction:.0%} of them after {load.shared_prefix_tokens} that they"
            " share)"
        )
    most = "" if load.ignore_eos else "at most "
    return f"{what}, answers of {most}{load.output_tokens}"


def objectives_in_words(load: GenerateShape) -> str:
    """What counts as good, as one phrase; empty if nothing does."""
    found = []
    if load.slo_ttft_ms is not None:
        found.append(f"ttft {load.slo_ttft_ms:g} ms")
    if load.slo_itl_ms is not None:
        found.append(f"itl {load.slo_itl_ms:g} ms")
    return " and ".join(found)


def _lines(result: GenerateResult) -> Iterator[str]:
    counts, rate, load = result.counts, result.throughput, result.load
    yield served_line(result.served, load.target)
    yield f"{load_in_words(result)}; measured {result.duration_s:.1f} s"
    yield prompts_in_words(load)
    yield ""
    yield (
        f"  throughput  {rate.output_tokens_per_second:,.1f} output tokens/s"
        f"  {rate.total_tokens_per_second:,.1f} with prompts"
        f"  {rate.requests_per_second:,.2f} requests/s"
    )
    if rate.goodput_per_second is not None and rate.goodput_fraction is not None:
        yield (
            f"  goodput     {rate.goodput_per_second:,.2f} requests/s within"
            f" {objectives_in_words(load)}, {rate.goodput_fraction:.2%} of all due"
        )
    yield (
        f"  requests    {counts.answered:,} answered  {counts.failed:,} failed"
        f"  {counts.cancelled:,} cancelled  {counts.unsent:,} not sent"
        f"  {counts.unfinished:,} unfinished"
    )
    yield from error_lines(result.errors)
    yield from _token_lines(result)
    yield ""
    yield from _table(result)
    yield from generator_lines(result.generator, result.pace)
    yield from (f"warning: {warning}" for warning in result.warnings)


def _token_lines(result: GenerateResult) -> Iterator[str]:
    tokens = result.tokens
    if not result.counts.answered:
        return
    reasons = "  ".join(f"{count:,} {name}" for name, count in result.finish_reasons.items())
    yield f"  finished    {reasons}"
    yield (
        f"  tokens      {tokens.prompt:,} in, {tokens.output:,} out; the server counted"
        f" {tokens.server_prompt:,} ({tokens.cached:,} cached) and {tokens.server_generated:,}"
    )
    if tokens.num_preemptions:
        yield f"  preempted   {tokens.num_preemptions:,} times"


def _table(result: GenerateResult) -> Iterator[str]:
    rows = [
        ("ttft", result.ttft_ms),
        ("itl", result.itl_ms),
        ("e2e latency", result.e2e_latency_ms),
    ]
    if (server := result.server) is not None:
        rows += [
            ("  server queue", server.queue_ms),
            ("  server prefill", server.prefill_ms),
            ("  server ttft", server.ttft_ms),
            ("  server mean itl", server.mean_itl_ms),
            ("  server total", server.total_ms),
            ("  outside server", server.outside_ms),
        ]
    if not any(quantiles for _, quantiles in rows):
        yield "  No request was answered."
    else:
        yield headings_line("ms")
    yield from (figures_line(name, quantiles) for name, quantiles in rows if quantiles)
    yield ""
