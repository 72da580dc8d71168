"""Shows what a model generates: whole or as it comes, as text or as JSON."""

import json
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass

import click

from enginehouse_client.client import Client
from enginehouse_client.generate_messages import (
    Chat,
    GeneratedSequence,
    Generation,
    GenerationPiece,
    OutputOptions,
    Sampling,
    Stopping,
    Structure,
)

__all__ = ["Wanted", "show_timing", "stream_of", "write_answer"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asked for, but for the prompt."""

    model: str
    version: int | None
    version_label: str | None
    sampling: Sampling
    stopping: Stopping
    output: OutputOptions
    structure: Structure | None
    timeout_s: float | None


def write_answer(
    client: Client, wanted: Wanted, prompt: str, *, is_stream: bool, as_json: bool
) -> None:
    """Writes the answer to standard output; the figures of a text go to standard error."""
    start = time.perf_counter()
    if is_stream:
        _write_stream(client, wanted, prompt, as_json=as_json)
        return
    answer = client.generate(
        wanted.model,
        prompt,
        sampling=wanted.sampling,
        stopping=wanted.stopping,
        output=wanted.output,
        structure=wanted.structure,
        version=wanted.version,
        version_label=wanted.version_label,
        timeout_s=wanted.timeout_s,
    )
    took_ms = (time.perf_counter() - start) * 1e3
    if as_json:
        click.echo(_as_json(answer))
        return
    for sequence in answer.sequences:
        if len(answer.sequences) > 1:
            click.secho(f"{sequence.index}:", bold=True)
        click.echo(sequence.text)
        show_timing(answer, sequence, took_ms)


def stream_of(
    client: Client, wanted: Wanted, prompt: str | Chat
) -> Generator[GenerationPiece, None, None]:
    """The pieces of an answer as they come."""
    return client.generate_stream(
        wanted.model,
        prompt,
        sampling=wanted.sampling,
        stopping=wanted.stopping,
        output=wanted.output,
        structure=wanted.structure,
        version=wanted.version,
        version_label=wanted.version_label,
        timeout_s=wanted.timeout_s,
    )


def show_timing(
    answer: Generation | GenerationPiece, sequence: GeneratedSequence, took_ms: float
) -> None:
    """Writes why a sequence ended and where its time went, to standard error."""
    usage, timing = sequence.usage, sequence.timing
    if usage is None or timing is None:
        return
    itl = "" if timing.mean_itl_ms is None else f"  between tokens {timing.mean_itl_ms:.2f}"
    line = (
        f"  {answer.model}/{answer.version}  {sequence.finish_reason}"
        f"  {usage.prompt_tokens} + {usage.generated_tokens} tokens"
        f"  queue {timing.queue_ms:.2f}  first token {timing.ttft_ms:.2f}{itl}"
        f"  total {timing.total_ms:.2f}  round trip {took_ms:.2f} ms"
    )
    click.secho(line, dim=True, err=True)


def _write_stream(client: Client, wanted: Wanted, prompt: str, *, as_json: bool) -> None:
    if not as_json and (wanted.sampling.num_sequences or 1) > 1:
        raise click.UsageError("--stream shows one answer as text: add --json for several")
    start = time.perf_counter()
    with closing(stream_of(client, wanted, prompt)) as pieces:
        for piece in pieces:
            if as_json:
                click.echo(_as_json(piece))
                continue
            for sequence in piece.sequences:
                click.echo(sequence.text, nl=False)
                if sequence.finish_reason is not None:
                    click.echo()
                    show_timing(piece, sequence, (time.perf_counter() - start) * 1e3)


def _as_json(answer: Generation | GenerationPiece) -> str:
    return json.dumps(asdict(answer), ensure_ascii=False)
