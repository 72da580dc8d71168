"""`enginehouse loadtest`: runs a load and reports it."""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Literal

import click

from enginehouse_client._base import DEFAULT_TARGET
from enginehouse_client._default_model import only_ready_model
from enginehouse_client.client import Client

from .result import LoadResult
from .run import precise_loop, run_closed, run_open
from .settings import LoadSettings
from .text_report import text_report
from .texts import DEFAULT_TEXTS

__all__ = ["loadtest"]

_POSITIVE = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)
_REPORT = click.Path(dir_okay=False, writable=True, path_type=Path)
_DURATION_S, _WITHOUT_END_S = 10.0, 365 * 86_400.0  # a year: JSON has no infinity
_GC_THRESHOLD = 50_000  # new objects between two collections; the default is 700


@click.group()
def loadtest() -> None:
    """Measure a server under load."""


@loadtest.command()
@click.option("--target", default=DEFAULT_TARGET, show_default=True, help="Where the server is.")
@click.option("--model", help="Name of the model; may be left out where only one serves.")
@click.option("--version", type=_COUNT, help="Its version; default the newest served.")
@click.option("--concurrency", type=_COUNT, help="Closed load: so many clients.  [default: 8]")
@click.option("--rate", type=_POSITIVE, help="Open load: so many requests a second, at random.")
@click.option("--max-in-flight", type=_COUNT, default=1024, show_default=True, help="Open load.")
@click.option(
    "--duration", "duration_s", type=_POSITIVE, help="[default: 10, or without end with --requests]"
)
@click.option("--warmup", "warmup_s", type=click.FloatRange(0), default=1.0, show_default=True)
@click.option("--requests", "num_requests", type=_COUNT, help="End after so many requests.")
@click.option("--texts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--texts-per-request", type=_COUNT, default=1, show_default=True)
@click.option("--stream", "is_streamed", is_flag=True, help="All requests over one stream.")
@click.option("--timeout-ms", type=_POSITIVE, default=10_000.0, show_default=True)
@click.option("--slo-ms", type=_POSITIVE, help="Count as goodput what is answered within.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of texts and arrivals.")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--json", "json_path", type=_REPORT)
@click.option("--html", "html_path", type=_REPORT)
def classify(  # noqa: PLR0913 - one for each option
    *,
    target: str,
    model: str | None,
    version: int | None,
    concurrency: int | None,
    rate: float | None,
    max_in_flight: int,
    duration_s: float | None,
    warmup_s: float,
    num_requests: int | None,
    texts: Path | None,
    texts_per_request: int,
    is_streamed: bool,
    timeout_ms: float,
    slo_ms: float | None,
    seed: int,
    output: Literal["text", "json"],
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Send Classify requests; --concurrency or --rate says when.

    Ends after --warmup and --duration (seconds), plus at most --timeout-ms for the answers still
    due. Ctrl-C ends it early and reports what was done.
    """
    if concurrency is not None and rate is not None:
        raise click.UsageError("--concurrency and --rate exclude each other")
    _check_reports(json_path, html_path)
    settings = LoadSettings(
        target=target,
        model=model or _default_model(target),
        texts=DEFAULT_TEXTS if texts is None else _read_texts(texts),
        version=version,
        texts_per_request=texts_per_request,
        warmup_s=warmup_s,
        duration_s=duration_s or (_WITHOUT_END_S if num_requests else _DURATION_S),
        num_requests=num_requests,
        timeout_s=timeout_ms / 1e3,
        is_streamed=is_streamed,
        seed=seed,
        slo_ms=slo_ms,
    )
    stop = asyncio.Event()
    if rate is None:
        result = _run(run_closed(settings, concurrency or 8, stop), stop, _fast_loop())
    else:
        result = _run(run_open(settings, rate, max_in_flight, stop), stop, precise_loop)
    click.echo(result.to_json() if output == "json" else text_report(result))
    if json_path is not None:
        json_path.write_text(result.to_json() + "\n", encoding="utf-8")
    if html_path is not None:
        from .html_report import html_report

        html_path.write_text(html_report(result), encoding="utf-8")
    if result.latency_ms is None:
        raise click.ClickException("no request was answered")


def _check_reports(json_path: Path | None, html_path: Path | None) -> None:
    """Fails before the run where writing its reports would fail after it."""
    for path in filter(None, (json_path, html_path)):
        if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise click.UsageError(f"{path} cannot be written: {path.parent} is no writable folder")
    if html_path is not None:
        from . import html_report  # noqa: F401  # needs the extra; slow, so only where it is used


def _default_model(target: str) -> str:
    with Client(target) as client:
        return only_ready_model(client.list_models(), "classify")


def _read_texts(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is not text in UTF-8: {error}") from error
    texts = tuple(line for line in lines if line.strip())
    if not texts:
        raise click.UsageError(f"{path} has no text: one a line is expected")
    return texts


LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def _fast_loop() -> LoopFactory:
    """The loop that takes least from a server on the same machine; its timers matter less."""
    try:
        import uvloop
    except ImportError:
        return precise_loop
    return uvloop.new_event_loop


def _run(
    load: Coroutine[None, None, LoadResult], stop: asyncio.Event, loop_factory: LoopFactory
) -> LoadResult:
    async def interruptible() -> LoadResult:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        return await load

    # What is loaded by now stays: a load test's own pauses would look like the server's.
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(interruptible())
