"""How a subcommand ends: an exit code and one clear text on stderr, whatever happens."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click

from .errors import BuildError

__all__ = ["ending_cleanly"]

_FAILED, _USAGE, _INTERRUPTED, _TERMINATED = 1, 2, 130, 143
_EXTRA_MODULES = {
    *("filelock", "numpy", "onnx", "onnxscript", "openvino", "rich", "safetensors"),
    *("tokenizers", "torch", "transformers"),
}


@contextmanager
def ending_cleanly(command: str, extra: str = "builder") -> Iterator[None]:
    """Turns every way that the block may end into an exit code.

    SIGTERM unwinds the block like Ctrl-C does, so that nothing half-done stays behind. With
    ENGINEHOUSE_DEBUG set, errors come with their traceback.

    Args:
        command: The subcommand, named in messages.
        extra: What to install where a module is missing.
    """
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    except BuildError as error:
        _end(command, str(error), error.exit_code)
    except KeyboardInterrupt:
        _end(command, "interrupted; nothing was published", _INTERRUPTED)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA_MODULES:
            raise
        _end(
            command,
            f"the package {error.name} is not installed: pip install 'enginehouse[{extra}]'",
            _USAGE,
        )
    except (click.ClickException, click.exceptions.Exit, SystemExit):
        raise
    except Exception as error:
        text = f"unexpected {type(error).__name__}: {error}"
        _end(command, f"{text} (ENGINEHOUSE_DEBUG=1 shows where)", _FAILED)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminated(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(_TERMINATED)


def _end(command: str, message: str, code: int) -> NoReturn:
    if os.environ.get("ENGINEHOUSE_DEBUG"):
        traceback.print_exc()
    click.echo(f"enginehouse {command}: {message}", err=True)
    sys.exit(code)
