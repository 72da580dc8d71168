"""A conversation in a terminal: what was said is kept, Ctrl-C stops an answer, Ctrl-D leaves."""

import sys
import time
from contextlib import closing, suppress

import click

from enginehouse_client.client import Client
from enginehouse_client.errors import EnginehouseError
from enginehouse_client.generate_messages import Chat, ChatMessage

from ._generating import Wanted, show_timing, stream_of

__all__ = ["converse"]


def converse(client: Client, wanted: Wanted, first: str | None, system: str | None) -> None:
    """Talks until the end of standard input.

    Args:
        client: Connected.
        wanted: How answers are generated.
        first: What the user says first; None asks for it.
        system: What the assistant is told beforehand.
    """
    said = [] if system is None else [ChatMessage("system", system)]
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - gives the prompt its history and keys
        click.secho("Ctrl-C stops an answer, Ctrl-D leaves.", dim=True, err=True)
    line = first if first is not None else _next_line()
    while line is not None:
        if line.strip():
            said.append(ChatMessage("user", line))
            try:
                said.append(ChatMessage("assistant", _answer(client, wanted, said)))
            except EnginehouseError as error:
                click.secho(str(error), fg="red", err=True)
                said.pop()  # it was not answered: it can be said otherwise
        line = _next_line()


def _answer(client: Client, wanted: Wanted, said: list[ChatMessage]) -> str:
    """Shows an answer as it comes; gives as much of it as was shown."""
    text, start = "", time.perf_counter()
    with closing(stream_of(client, wanted, Chat(tuple(said)))) as pieces:
        try:
            for piece in pieces:
                for sequence in piece.sequences:
                    text += sequence.text
                    click.echo(sequence.text, nl=False)
                    if sequence.finish_reason is not None:
                        click.echo()
                        show_timing(piece, sequence, (time.perf_counter() - start) * 1e3)
        except KeyboardInterrupt:
            click.secho(" (stopped)", dim=True)
    return text


def _next_line() -> str | None:
    """What the user says next; None at the end."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            return input(prompt)
        except EOFError:
            return None
        except KeyboardInterrupt:
            click.echo()  # drops the line that was begun
