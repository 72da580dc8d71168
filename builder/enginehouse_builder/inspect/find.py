"""Finds what a path means: a version's folder, a model's, or a repository."""

from dataclasses import dataclass
from pathlib import Path

from enginehouse_builder.errors import SpecError
from enginehouse_builder.manifest import FILE_NAME, Manifest, ManifestError, read_manifest

__all__ = ["Version", "find_version", "find_versions"]


@dataclass(frozen=True, slots=True)
class Version:
    """A published version.

    Attributes:
        folder: Its folder.
        manifest: None if it cannot be read.
        fault: Why it cannot be read, else empty.
    """

    folder: Path
    manifest: Manifest | None
    fault: str = ""


def find_version(path: Path) -> Version | None:
    """The version at a path: a version's folder, or a model's newest; None for a repository.

    Raises:
        SpecError: There is no such folder.
    """
    if not path.is_dir():
        raise SpecError(f"{path} is not a folder: give a version, a model or a repository")
    if (path / FILE_NAME).exists():
        return _read(path)
    numbers = _numbers(path)
    return _read(path / str(max(numbers))) if numbers else None


def find_versions(repository: Path) -> list[Version]:
    """Every version of a repository, by model, newest first.

    Raises:
        SpecError: There is none.
    """
    models = sorted(p for p in repository.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = [
        _read(model / str(number))
        for model in models
        for number in sorted(_numbers(model), reverse=True)
    ]
    if not found:
        raise SpecError(
            f"{repository} holds no version of a model: build one with "
            f"'enginehouse build --repository {repository} --model …'"
        )
    return found


def _numbers(folder: Path) -> list[int]:
    return [
        int(p.name)
        for p in folder.iterdir()
        if p.is_dir() and p.name.isascii() and p.name.isdigit() and p.name[0] != "0"
    ]


def _read(folder: Path) -> Version:
    try:
        return Version(folder, read_manifest(folder))
    except ManifestError as error:
        return Version(folder, None, str(error))
