"""A build's progress: a spinner on a terminal, plain lines elsewhere, always on stderr."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

__all__ = ["Display", "StageDisplay"]


class StageDisplay:
    """What a running stage says.

    Attributes:
        result: The line that stays when the stage ends.
    """

    def __init__(self, name: str, console: Console | None, status: Status | None) -> None:
        self.result = ""
        self._name = name
        self._console = console
        self._status = status

    def report(self, text: str) -> None:
        """Says what the stage does now."""
        if self._status is not None:
            self._status.update(f"[bold]{self._name}[/bold] {escape(text)}")
        elif self._console is not None:
            _line(self._console, f"{self._name:>9} … {text}")


class Display:
    """Shows stages one after the other."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        """Takes whether to show nothing, and where to: stderr unless given."""
        self._console = None if quiet else console or Console(stderr=True, highlight=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[StageDisplay]:
        """Shows a stage while the context lasts, then its time and result."""
        started = time.perf_counter()
        console = self._console
        if console is not None and console.is_terminal:
            with console.status(f"[bold]{name}[/bold]") as status:
                shown = StageDisplay(name, console, status)
                yield shown
        else:
            shown = StageDisplay(name, console, None)
            yield shown
        if console is not None:
            seconds = time.perf_counter() - started
            _line(console, f"{name:>9} {seconds:6.1f} s  {shown.result}".rstrip())

    def note(self, text: str) -> None:
        """Says something between stages."""
        if self._console is not None:
            _line(self._console, text)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
