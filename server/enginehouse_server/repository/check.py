"""What a machine makes of the versions of a repository: which engines run there, and which serves.

Nothing is loaded. Files are hashed, each once, unless asked not to.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from enginehouse_builder.manifest import FILE_NAME, NAME_PATTERN, File, Manifest
from enginehouse_server.engine.machine import Machine
from enginehouse_server.errors import RepositoryError

from .compatibility import judge, missing_target, rank
from .scan import is_version_number
from .verdict import AnyEngine, Rebuild, Verdict
from .verify import Damage, damage_of
from .version import all_engines, read_version

__all__ = ["CheckedEngine", "CheckedVersion", "check_version", "versions_at"]


@dataclass(frozen=True, slots=True)
class CheckedEngine:
    """An engine of a version.

    Attributes:
        target: What it was built for.
        backend: Its runtime.
        precision: Its precision.
        verdict: Whether it runs.
    """

    target: str
    backend: str
    precision: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class CheckedVersion:
    """A version on a machine.

    Attributes:
        model: Its name.
        version: Its number; 0 if there is none.
        folder: Where it is.
        fault: Why none of it can be served, whatever its engines; empty if it can.
        remedy: What to do about the fault.
        engines: Its engines, the better ones first.
        takes: Target of the engine that would serve; empty if none runs.
        better: Command that makes an engine which uses this machine better; empty if none would.
    """

    model: str
    version: int
    folder: Path
    fault: str = ""
    remedy: str = ""
    engines: tuple[CheckedEngine, ...] = ()
    takes: str = ""
    better: str = ""


def versions_at(path: Path, *, every: bool = False) -> list[Path]:
    """Folders of the versions that a path means.

    Args:
        path: Of a version, of a model, or of a repository.
        every: Take every version of a model, else the newest. A model of a repository that has
            none stands for itself.

    Raises:
        RepositoryError: There is no such folder, it cannot be read, or there is no model in it.
    """
    path = Path(os.path.abspath(path))
    if (path / FILE_NAME).exists():
        return [path]
    if numbered := _versions_of(path):
        return numbered if every else numbered[:1]
    found: list[Path] = []
    for model in sorted(_folders_in(path)):
        if NAME_PATTERN.fullmatch(model.name):
            versions = _versions_of(model) or [model]
            found += versions if every else versions[:1]
    if not found:
        raise RepositoryError(
            f"{path} holds no model: build one with 'enginehouse build --repository {path} "
            "--model …', or name another folder"
        )
    return found


def check_version(folder: Path, machine: Machine, *, verify: bool = True) -> CheckedVersion:
    """Judges a version and all of its engines.

    Args:
        folder: Of the version, or of a model that has none.
        machine: Where it would be served.
        verify: Whether to hash the files.
    """
    if not is_version_number(folder.name):
        remedy = f"enginehouse build --name {folder.name} --repository {folder.parent} --model …"
        return CheckedVersion(folder.name, 0, folder, "it has no version", remedy)
    named = CheckedVersion(folder.parent.name, int(folder.name), folder)
    again = f"copy it again, or: enginehouse build --name {named.model} --model …"
    try:
        manifest = read_version(folder)
    except RepositoryError as error:
        return replace(named, fault=str(error), remedy=again)
    damaged = cache(lambda file: damage_of(folder, file) if verify else None)
    rebuild = Rebuild(manifest.model, folder.parent.parent)
    engines = [
        _checked(engine, machine, rebuild, damaged)
        for engine in sorted(all_engines(manifest), key=lambda e: rank(e, machine))
    ]
    for file in manifest.text:
        if damage := damaged(file):
            return replace(named, fault=_said(file, damage), remedy=again, engines=tuple(engines))
    return replace(
        named,
        engines=tuple(engines),
        takes=next((e.target for e in engines if e.verdict.runs), ""),
        better=_better(manifest, engines, machine, rebuild),
    )


def _checked(
    engine: AnyEngine,
    machine: Machine,
    rebuild: Rebuild,
    damaged: Callable[[File], Damage | None],
) -> CheckedEngine:
    verdict = judge(engine, machine, rebuild)
    damages = ((f, d) for f in engine.files if (d := damaged(f))) if verdict.runs else ()
    for file, damage in damages:
        target = f"{engine.target}={engine.precision}"
        remedy = f"copy the version again, or: {rebuild.to(target)}"
        wanted = f"{file.path} of {damage.wanted}"
        verdict = Verdict(False, "file", wanted, f"{damage.found}: {damage.cause}", remedy)
        break
    return CheckedEngine(engine.target, engine.backend, engine.precision, verdict)


def _better(
    manifest: Manifest, checked: Sequence[CheckedEngine], machine: Machine, rebuild: Rebuild
) -> str:
    able = {e.target for e in checked if e.verdict.runs}
    target = missing_target(
        [e for e in all_engines(manifest) if e.target in able], machine, checked[0].precision
    )
    return rebuild.to(target) if target else ""


def _said(file: File, damage: Damage) -> str:
    return f"{file.path}: {damage.found} instead of {damage.wanted}, {damage.cause}"


def _versions_of(model: Path) -> list[Path]:
    """Folders of a model's versions, newest first."""
    numbered = [p for p in _folders_in(model) if is_version_number(p.name)]
    return sorted(numbered, key=lambda p: -int(p.name))


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.is_dir()]
    except OSError as error:
        raise RepositoryError(f"{folder} cannot be read: {error.strerror}") from error
