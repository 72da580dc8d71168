"""Which of a version's engines serves here: the best that loads and answers as certified."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from enginehouse_server.engine.machine import Machine
from enginehouse_server.errors import DeviceError, PlanMismatchError, UnloadableError

from .compatibility import judge, rank
from .verdict import AnyEngine, Rebuild

__all__ = ["Choice", "choose"]

_log = logging.getLogger(__name__)
B = TypeVar("B", bound=AnyEngine)
L = TypeVar("L")


@dataclass(frozen=True, slots=True)
class Choice(Generic[B, L]):
    """An engine that serves.

    Attributes:
        built: What the manifest says of it.
        loaded: The engine.
        passed_over: Better ones that do not serve here, each with the reason.
    """

    built: B
    loaded: L
    passed_over: tuple[str, ...]


def choose(
    engines: Sequence[B],
    load: Callable[[B], L],
    rebuild: Rebuild,
    machine: Machine,
    required: str = "",
) -> Choice[B, L]:
    """Loads the best engine that can be served; what cannot run on the machine is not touched.

    Args:
        engines: Of the version.
        load: Loads and proves one.
        rebuild: Makes another engine of the model, for messages.
        machine: This one.
        required: The backend that must run it; empty for any.

    Raises:
        UnloadableError: None can be served; every reason is in the message.
        DeviceError: The only one failed while it was proven.
    """
    name = rebuild.model
    passed_over: list[str] = []
    able = [engine for engine in engines if required in ("", engine.backend)]
    if not able:
        raise PlanMismatchError(
            f"{name} has no engine of {required}, which is required, but of "
            f"{', '.join(engine.backend for engine in engines)}: build it with --target "
            f"{required}, or serve it without --require"
        )
    for built in sorted(able, key=lambda engine: rank(engine, machine)):
        try:
            _check(built, machine, rebuild)
            loaded = load(built)
        except (UnloadableError, DeviceError) as error:
            if len(able) == 1:
                raise
            passed_over.append(f"{built.target}: {error}")
            _log.warning("%s: the engine of %s is passed over: %s", name, built.target, error)
            continue
        others = [e.target for e in engines if e is not built]
        _log.info(
            "%s: %s runs it, %s", name, built.target, _why(required, others, len(passed_over))
        )
        return Choice(built, loaded, tuple(passed_over))
    raise UnloadableError(f"{name} has no engine that can be served: {'; '.join(passed_over)}")


def _check(engine: AnyEngine, machine: Machine, rebuild: Rebuild) -> None:
    """Raises PlanMismatchError for an engine that cannot run here."""
    verdict = judge(engine, machine, rebuild)
    if not verdict.runs:
        raise PlanMismatchError(f"{verdict.reason}; {verdict.remedy}")
    for note in verdict.notes:
        _log.info("%s: the engine of %s: %s", rebuild.model, engine.target, note)


def _why(required: str, others: Sequence[str], num_passed_over: int) -> str:
    if required:
        return "which is required"
    if not others:
        return "its only engine"
    return f"the best of its {len(others) + 1} engines" + (
        " that can be served here" if num_passed_over else f"; the others are {', '.join(others)}"
    )
