"""The command `enginehouse`: finds the subcommands of all parts, imports only the one that runs.

The server's and the builder's subcommands are entry points: the client does not import them, and
one whose extra is not installed says which to install.
"""

from importlib import metadata
from typing import NamedTuple, NoReturn

import click

from .errors import EnginehouseError

__all__ = ["main"]

_GROUP = "enginehouse.commands"


class _Known(NamedTuple):
    """What is known of a subcommand without importing it."""

    help: str
    extra: str = ""
    uses_onnxruntime: bool = False


_KNOWN = {
    "build": _Known("Turn a Hugging Face model into a certified engine.", "builder", True),
    "check": _Known("Say which engines of a repository run on a machine, and why not.", "server"),
    "classify": _Known("Classify texts with a served model."),
    "demo": _Known("Train and build the demo models.", "demo", True),
    "generate": _Known("Continue a prompt with a served model, or talk to it."),
    "inspect": _Known("Show what a repository holds, and how it was proven.", "builder"),
    "loadtest": _Known("Measure a server under load.", "loadtest"),
    "machine": _Known("Show what this machine can run engines on.", "server"),
    "serve": _Known("Serve a repository of engines over gRPC.", "server", True),
}


class _WrongSetupError(click.ClickException):
    """What is installed does not do for this command."""

    exit_code = 2


class _Commands(click.Group):
    """A group whose commands are the entry points of `enginehouse.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, sorted; imports nothing."""
        return sorted(metadata.entry_points(group=_GROUP).names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported; None if there is none of that name."""
        found = metadata.entry_points(group=_GROUP, name=cmd_name)
        if not found:
            return None
        known = _KNOWN.get(cmd_name, _Known(""))
        if known.uses_onnxruntime:
            _refuse_both_onnxruntimes()
        try:
            loaded = next(iter(found)).load()
        except ModuleNotFoundError as error:
            _explain_missing(cmd_name, error)
        if not isinstance(loaded, click.Command):
            raise TypeError(f"entry point {cmd_name!r} of {_GROUP} is not a click command")
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing them."""
        rows = [(name, _KNOWN.get(name, _Known("")).help) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command; what it is expected to fail with becomes one line on stderr."""
        try:
            return super().invoke(ctx)
        except EnginehouseError as error:
            raise click.ClickException(_describe(error)) from error
        except ModuleNotFoundError as error:
            _explain_missing(ctx.invoked_subcommand or "", error)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="enginehouse", message="enginehouse %(version)s")
def main() -> None:
    """Hugging Face models as compiled engines behind gRPC."""


def _describe(error: EnginehouseError) -> str:
    at_field = f"{error.field}: " if error.field and error.field not in str(error) else ""
    request = f" (request {error.request_id})" if error.request_id else ""
    return f"{at_field}{error}{request}"


def _explain_missing(command: str, error: ModuleNotFoundError) -> NoReturn:
    extra = _KNOWN.get(command, _Known("")).extra
    if not extra or (error.name or "").startswith("enginehouse"):
        raise error  # a fault of ours, not of the installation
    raise _WrongSetupError(
        f"enginehouse {command} needs the extra {extra!r}: pip install 'enginehouse[{extra}]'"
        f" (there is no module {error.name!r})"
    ) from error


def _refuse_both_onnxruntimes() -> None:
    names = ("onnxruntime", "onnxruntime-gpu")
    if all(_is_installed(name) for name in names):
        raise _WrongSetupError(
            "both onnxruntime and onnxruntime-gpu are installed, and each overwrites the other's"
            " files: pip uninstall both, then install the extra 'onnxruntime' or the extra 'cuda'"
        )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
