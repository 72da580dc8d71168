"""Compiles the engines that would use this machine better, beside serving.

Each is made by the builder's own command in a process of low priority, from the canonical graph of
the version, and published as the next version. Knows the command, and nothing of how it builds.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from .engine.machine import Machine
from .errors import RepositoryError
from .repository import Found, Rebuild, all_engines, judge, missing_target, rank, read_version, scan

__all__ = ["MissingEngine", "build_engines", "missing_engines"]

_log = logging.getLogger(__name__)
_NICENESS = 19  # engines that serve have the processor first
_GRACE_S = 10.0  # for a build that is told to end
_PROGRESS = "…"  # in a line that another of its kind follows soon


@dataclass(frozen=True, slots=True)
class MissingEngine:
    """An engine to be made.

    Attributes:
        model: Its model.
        target: What to build it for.
        command: What makes it.
    """

    model: str
    target: str
    command: tuple[str, ...]


def missing_engines(
    served: Iterable[Found], repository: Path, machine: Machine
) -> list[MissingEngine]:
    """What would serve better here than what the versions have; reads manifests.

    Args:
        served: Versions that this server was to load.
        repository: Where they are.
        machine: This one.
    """
    newest = {found.model: found.version for found in reversed(scan(repository))}
    missing = []
    for found in served:
        if found.version < newest.get(found.model, 0):
            _log.info("nothing is built for %s: it has a newer version", found.model)
            continue
        rebuild = Rebuild(found.model, repository)
        try:
            engines = sorted(
                all_engines(read_version(found.folder)), key=lambda e: rank(e, machine)
            )
        except RepositoryError:
            continue  # loading it has said so
        able = [engine for engine in engines if judge(engine, machine, rebuild).runs]
        target = missing_target(able, machine, (able or engines)[0].precision)
        if target:
            command = (sys.executable, "-m", "enginehouse_client", *rebuild.arguments(target))
            missing.append(MissingEngine(found.model, target, command))
    if not missing:
        why = f": {machine.gpu_obstacle}" if machine.gpu_obstacle else ""
        _log.info("no engine is missing that would serve better on this machine%s", why)
    return missing


async def build_engines(missing: Sequence[MissingEngine]) -> None:
    """Makes one engine after another, and says in the log how that goes.

    One that fails does not keep the next from being made. Being cancelled ends the build.
    """
    for engine in missing:
        name = f"{engine.model} for {engine.target}"
        _log.info("building %s beside serving", name)
        try:
            code, last = await _run(engine.command, name)
        except OSError as error:
            code, last = -1, str(error)
        if code:
            _log.error(
                "%s was not built (exit code %d): %s; what is there goes on serving",
                *(name, code, last or "no word why"),
            )
        else:
            _log.info("%s is built and published: it is served from the next start", name)


async def _run(command: Sequence[str], name: str) -> tuple[int, str]:
    """Runs a command to its end; its exit code and last line."""
    process = await asyncio.to_thread(_started, command)
    try:
        last = await asyncio.to_thread(_follow, process, name)
        return await asyncio.to_thread(process.wait), last
    finally:
        if process.returncode is None:
            await asyncio.to_thread(_end, process)


def _started(command: Sequence[str]) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a signal to the server's group is the server's to pass on
    )
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
    return process


def _follow(process: "subprocess.Popen[str]", name: str) -> str:
    """Logs what a process prints until it ends; the last line. Progress comes once a second."""
    last, quiet_until = "", 0.0
    assert process.stdout is not None
    with process.stdout as lines:
        for line in map(str.strip, lines):
            now = monotonic()
            if line and not (_PROGRESS in line and now < quiet_until):
                _log.info("%s: %s", name, line)
                quiet_until = now + 1
            last = line or last
    return last


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends a process and what it started, at first so that it can tidy up."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
            return
