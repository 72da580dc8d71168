"""The subcommand `serve`."""

import asyncio
import gc
import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from .config import ConfigError
from .errors import DeviceLostError, EnginehouseError, ModelNotFoundError, UnloadableError
from .options import config_options, load_config
from .telemetry.log import configure_logs

__all__ = ["serve"]

_GC_THRESHOLD = 50_000  # new objects between two collections; the default is 700
_FAILED, _USAGE, _DEVICE_LOST, _NOTHING_TO_SERVE = 1, 2, 3, 4


@click.command(short_help="Serve the models of a repository over gRPC.")
@config_options
def serve(config: Path | None, **flags: Any) -> None:  # noqa: ANN401
    """Serve the models of a repository over gRPC, until SIGTERM.

    Every setting is a flag, a variable ENGINEHOUSE_<NAME> or an entry of the --config file; the
    first given of these counts. Exit codes: 0 stopped, 1 failed, 2 wrong usage or configuration,
    3 device lost or engine hung, 4 nothing to serve or --require unmet, 130 or 143 ended by a
    second signal.
    """
    try:
        settings = load_config(flags, config)
    except ConfigError as error:
        raise SystemExit(_fail(str(error), _USAGE)) from None
    configure_logs(settings.log_level, settings.log_format)
    # Texts are tokenized on threads of our own: the library's would only get in their way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A lane that comes back from its engine must not wait 5 ms for the event loop to let go.
    sys.setswitchinterval(0.0005)
    from .serving import run

    # What is loaded by now stays for good: the collector need not look at it over and over.
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)

    message, code = "", 0
    try:
        _run(run(settings))
    except DeviceLostError as error:
        _fail(str(error), _DEVICE_LOST)
        _leave(_DEVICE_LOST)
    except (UnloadableError, ModelNotFoundError) as error:
        message, code = str(error), _NOTHING_TO_SERVE
    except (EnginehouseError, OSError) as error:
        logging.getLogger(__name__).debug("stopped by an error", exc_info=error)
        message, code = str(error), _FAILED
    # What the error's frames held of a runtime goes now: at the interpreter's end it can crash.
    gc.collect()
    if code:
        raise SystemExit(_fail(message, code))


def _run(main: Any) -> None:  # noqa: ANN401
    """Runs a coroutine, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def _leave(code: int) -> NoReturn:
    """Ends the process as it is: threads may be stuck in an engine, whose device may be gone."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fail(message: str, code: int) -> int:
    click.echo(f"enginehouse serve: {message}", err=True)
    return code
