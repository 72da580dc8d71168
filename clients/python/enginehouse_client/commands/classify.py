"""`enginehouse classify`: texts from the command line or a file, labels on stdout."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TextIO

import click

from enginehouse_client._base import DEFAULT_TARGET
from enginehouse_client._default_model import only_ready_model
from enginehouse_client.client import Client
from enginehouse_client.messages import Activation, Classification, ClassifyInput, Result, TextPair

__all__ = ["classify"]

_BAR_WIDTH = 24


@click.command()
@click.argument("texts", nargs=-1)
@click.option(
    "--file", "file", type=click.File(encoding="utf-8"), help="Texts, one a line; - is stdin."
)
@click.option("--pair", help="A second text, judged together with each text.")
@click.option("--model", help="Name of the model; may be left out where only one serves.")
@click.option(
    "--version", type=click.IntRange(min=1), help="Its version; default the newest served."
)
@click.option("--version-label", help='A name for a version, such as "stable".')
@click.option("--top-k", type=click.IntRange(min=1), help="Show only so many labels of each text.")
@click.option(
    "--activation",
    type=click.Choice(["softmax", "sigmoid", "none"]),
    help="How logits become scores; default as the model says.",
)
@click.option("--truncate", is_flag=True, help="Cut texts that are too long for the model.")
@click.option("--target", default=DEFAULT_TARGET, show_default=True, help="Where the server is.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds for a request, all its attempts together.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each text.")
def classify(  # noqa: PLR0913 - one for each option
    *,
    texts: tuple[str, ...],
    file: TextIO | None,
    pair: str | None,
    model: str | None,
    version: int | None,
    version_label: str | None,
    top_k: int | None,
    activation: Activation | None,
    truncate: bool,
    target: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Classify TEXTS with a served model."""
    inputs = _inputs(texts, file, pair)
    with Client(target, timeout_s=timeout_s) as client:
        name = model or only_ready_model(client.list_models(), "classify")
        for chunk in _chunks(inputs, client.get_model(name, version).limits.max_inputs):
            start = time.perf_counter()
            answer = client.classify(
                name,
                chunk,
                version=version,
                version_label=version_label,
                top_k=top_k,
                activation=activation,
                truncate=truncate,
            )
            took_ms = (time.perf_counter() - start) * 1e3
            lines = _json_lines(chunk, answer) if as_json else _text_lines(chunk, answer, took_ms)
            click.echo("\n".join(lines))


def _inputs(
    texts: tuple[str, ...], file: TextIO | None, pair: str | None
) -> Sequence[ClassifyInput]:
    try:
        lines = [line.rstrip("\r\n") for line in file or ()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--file is not text in UTF-8: {error}") from error
    found = [*texts, *(line for line in lines if line.strip())]
    if not found:
        raise click.UsageError("nothing to classify: give a text, or --file with one a line")
    return found if pair is None else [TextPair(text, pair) for text in found]


def _chunks(inputs: Sequence[ClassifyInput], size: int) -> Iterator[Sequence[ClassifyInput]]:
    size = size or len(inputs)
    return (inputs[start : start + size] for start in range(0, len(inputs), size))


def _json_lines(inputs: Sequence[ClassifyInput], answer: Classification) -> Iterator[str]:
    head = {"model": answer.model, "version": answer.version, "request_id": answer.request_id}
    for item, result in zip(inputs, answer.results, strict=True):
        text = {"text": item} if isinstance(item, str) else asdict(item)
        yield json.dumps({**head, **text, **asdict(result)}, ensure_ascii=False)


def _text_lines(
    inputs: Sequence[ClassifyInput], answer: Classification, took_ms: float
) -> Iterator[str]:
    for item, result in zip(inputs, answer.results, strict=True):
        if len(inputs) > 1:
            yield click.style(_shown(item), bold=True)
        yield from _label_lines(result)
        yield click.style(_timing_line(answer, result, took_ms), dim=True)


def _label_lines(result: Result) -> Iterator[str]:
    width = max((len(label.label) for label in result.labels), default=0)
    are_shares = all(0 <= label.score <= 1 for label in result.labels)
    for label in result.labels:
        bar = "█" * round(label.score * _BAR_WIDTH) if are_shares else ""
        yield f"  {label.label:<{width}}  {label.score:8.4f}  {bar}".rstrip()


def _timing_line(answer: Classification, result: Result, took_ms: float) -> str:
    timing = result.timing
    cut = ", cut" if result.truncated else ""
    return (
        f"  {answer.model}/{answer.version}  {result.num_tokens} tokens{cut}"
        f"  tokenize {timing.tokenize_ms:.2f}  queue {timing.queue_ms:.2f}"
        f"  compute {timing.compute_ms:.2f}  total {timing.total_ms:.2f}"
        f"  round trip {took_ms:.2f} ms  batch of {timing.batch_size}"
    )


def _shown(item: ClassifyInput) -> str:
    text = item if isinstance(item, str) else f"{item.text} | {item.text_pair}"
    return text if len(text) <= 76 else text[:75] + "…"
