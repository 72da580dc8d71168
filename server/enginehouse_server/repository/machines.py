"""The machine that manifests are judged for: this one, or another's description in a file."""

import json
from collections.abc import Iterable
from pathlib import Path

from enginehouse_builder.manifest import Manifest, MismatchError, from_json, to_json
from enginehouse_server.engine.machine import Machine, probe_machine
from enginehouse_server.errors import RepositoryError

__all__ = ["machine_for", "machine_to_json", "read_machine"]

_BINDINGS = ("cuda-core", "pycuda")


def machine_for(manifests: Iterable[Manifest]) -> Machine:
    """This machine, with those runtimes alone that the manifests' engines need."""
    backends = {engine.backend for manifest in manifests for engine in manifest.built}
    return probe_machine((*sorted(backends), *_BINDINGS))


def machine_to_json(machine: Machine) -> str:
    """The machine as an indented object."""
    return json.dumps(to_json(machine), indent=2, ensure_ascii=False)


def read_machine(file: Path) -> Machine:
    """Reads what `machine_to_json` wrote.

    Raises:
        RepositoryError: The file cannot be read, or does not describe a machine.
    """
    try:
        return from_json(Machine, json.loads(file.read_text(encoding="utf-8")), "machine")
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        kind = "describes no machine" if isinstance(error, MismatchError) else "cannot be read"
        raise RepositoryError(
            f"{file} {kind} ({why}): write it with 'enginehouse machine --json' on that machine"
        ) from error
