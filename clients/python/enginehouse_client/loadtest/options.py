"""What the commands of all kinds of load take, and how they run and report one."""

import asyncio
import functools
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar

import click

from enginehouse_client._base import DEFAULT_TARGET
from enginehouse_client._default_model import only_ready_model
from enginehouse_client.client import Client

from .drive import precise_loop
from .records import Pace

__all__ = ["COUNT", "POSITIVE", "Report", "RunOptions", "execute", "read_lines", "run_options"]

POSITIVE = click.FloatRange(min=0, min_open=True)
COUNT = click.IntRange(min=1)

_PATH = click.Path(dir_okay=False, writable=True, path_type=Path)
_DURATION_S, _WITHOUT_END_S = 10.0, 365 * 86_400.0  # a year: JSON has no infinity
_GC_THRESHOLD = 50_000  # new objects between two collections; the default is 700
_P = ParamSpec("_P")
_ResultT = TypeVar("_ResultT", bound="_Written")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options that all kinds of load have in common, as they were given."""

    target: str
    model: str | None
    version: int | None
    concurrency: int | None
    rate: float | None
    max_in_flight: int
    duration: float | None
    warmup_s: float
    num_requests: int | None
    timeout_ms: float
    seed: int
    output: Literal["text", "json"]
    json_path: Path | None
    html_path: Path | None

    @property
    def duration_s(self) -> float:
        """For how long requests are sent; a number of them alone has no time to end in."""
        return self.duration or (_WITHOUT_END_S if self.num_requests else _DURATION_S)

    @property
    def pace(self) -> Pace:
        """When requests are sent.

        Raises:
            click.UsageError: If both kinds of pace were asked for.
        """
        if self.rate is None:
            return Pace("closed", concurrency=self.concurrency or 8)
        if self.concurrency is not None:
            raise click.UsageError("--concurrency and --rate exclude each other")
        return Pace("open", rate=self.rate, max_in_flight=self.max_in_flight)

    def model_for(self, task: str) -> str:
        """The model that was named, or the only one that answers requests of a task."""
        if self.model:
            return self.model
        with Client(self.target) as client:
            return only_ready_model(client.list_models(), task)


def run_options(
    *, timeout_ms: float
) -> Callable[[Callable[Concatenate[RunOptions, _P], None]], Callable[..., None]]:
    """Gives a command the options of `RunOptions`, and them to it as its first argument.

    Args:
        timeout_ms: Default of --timeout-ms.
    """
    options = (
        click.option(
            "--target", default=DEFAULT_TARGET, show_default=True, help="Where the server is."
        ),
        click.option("--model", help="Name of the model; may be left out where only one serves."),
        click.option("--version", type=COUNT, help="Its version; default the newest served."),
        click.option(
            "--concurrency", type=COUNT, help="Closed load: so many clients.  [default: 8]"
        ),
        click.option(
            "--rate", type=POSITIVE, help="Open load: so many requests a second, at random."
        ),
        click.option(
            "--max-in-flight", type=COUNT, default=1024, show_default=True, help="Open load."
        ),
        click.option(
            "--duration", type=POSITIVE, help="[default: 10, or without end with --requests]"
        ),
        click.option(
            "--warmup", "warmup_s", type=click.FloatRange(0), default=1.0, show_default=True
        ),
        click.option("--requests", "num_requests", type=COUNT, help="End after so many requests."),
        click.option("--timeout-ms", type=POSITIVE, default=timeout_ms, show_default=True),
        click.option(
            "--seed", type=int, default=0, show_default=True, help="Of all that is random."
        ),
        click.option(
            "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
        ),
        click.option("--json", "json_path", type=_PATH),
        click.option("--html", "html_path", type=_PATH),
    )

    def decorate(command: Callable[Concatenate[RunOptions, _P], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapped(*args: _P.args, **given: _P.kwargs) -> None:
            common = {each.name: given.pop(each.name) for each in fields(RunOptions)}
            command(RunOptions(**common), *args, **given)  # type: ignore[arg-type]

        return functools.reduce(lambda made, option: option(made), reversed(options), wrapped)

    return decorate


class _Written(Protocol):
    def to_json(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Report:
    """The written forms of a result, but JSON, which it has itself.

    Attributes:
        text: For the terminal.
        html: A page; called only if one is wanted, because matplotlib is slow to import.
        has_answers: Whether anything was answered.
    """

    text: Callable[[], str]
    html: Callable[[], str]
    has_answers: bool


def execute(
    options: RunOptions,
    load: Callable[[Pace, asyncio.Event], Coroutine[None, None, _ResultT]],
    report: Callable[[_ResultT], Report],
) -> None:
    """Runs a load at the pace asked for and reports it where asked for; Ctrl-C ends it early.

    Raises:
        click.UsageError: If a report cannot be written.
        click.ClickException: If nothing was answered.
    """
    _check_reports(options)
    pace, stop = options.pace, asyncio.Event()
    loop_factory = _fast_loop() if pace.mode == "closed" else precise_loop
    result = _run(load(pace, stop), stop, loop_factory)
    written = report(result)
    click.echo(result.to_json() if options.output == "json" else written.text())
    if options.json_path is not None:
        options.json_path.write_text(result.to_json() + "\n", encoding="utf-8")
    if options.html_path is not None:
        options.html_path.write_text(written.html(), encoding="utf-8")
    if not written.has_answers:
        raise click.ClickException("no request was answered")


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a file that are not blank.

    Raises:
        click.UsageError: If there is none, or it is not text in UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is not text in UTF-8: {error}") from error
    texts = tuple(line for line in lines if line.strip())
    if not texts:
        raise click.UsageError(f"{path} has no text: one a line is expected")
    return texts


def _check_reports(options: RunOptions) -> None:
    """Fails before the run where writing its reports would fail after it."""
    for path in filter(None, (options.json_path, options.html_path)):
        if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise click.UsageError(f"{path} cannot be written: {path.parent} is no writable folder")
    if options.html_path is not None:
        from . import drawing  # noqa: F401  # needs the extra; slow, so only where it is used


LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def _fast_loop() -> LoopFactory:
    """The loop that takes least from a server on the same machine; its timers matter less."""
    try:
        import uvloop
    except ImportError:
        return precise_loop
    return uvloop.new_event_loop


def _run(
    load: Coroutine[None, None, _ResultT], stop: asyncio.Event, loop_factory: LoopFactory
) -> _ResultT:
    async def interruptible() -> _ResultT:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        return await load

    # What is loaded by now stays: a load test's own pauses would look like the server's.
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(interruptible())
