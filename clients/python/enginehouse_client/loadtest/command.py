"""`enginehouse loadtest`: the kinds of load."""

import click

from .classify.command import classify
from .generate.command import generate

__all__ = ["loadtest"]


@click.group()
def loadtest() -> None:
    """Measure a server under load."""


loadtest.add_command(classify)
loadtest.add_command(generate)
