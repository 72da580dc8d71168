"""Proves that a version's files are those that its manifest was written for."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from enginehouse_builder.manifest import File, sha256_of
from enginehouse_server.errors import RepositoryError

__all__ = ["Damage", "damage_of", "verify_files"]


class Damage(NamedTuple):
    """A file that is not as it was published.

    Attributes:
        wanted: What the manifest says of it.
        found: What it is.
        cause: What that means.
    """

    wanted: str
    found: str
    cause: str


def damage_of(folder: Path, file: File) -> Damage | None:
    """How a file of a version's folder differs from its size and SHA-256; None if it does not."""
    path = folder / file.path
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            return Damage(
                f"{file.size_bytes} bytes", f"{size} bytes", "the copy is damaged or unfinished"
            )
        found = sha256_of(path)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        return Damage(f"{file.size_bytes} bytes", reason, "it is missing or locked")
    if found != file.sha256:
        return Damage(f"SHA-256 {file.sha256}", f"SHA-256 {found}", "the file was changed")
    return None


def verify_files(folder: Path, files: Sequence[File]) -> None:
    """Checks size and SHA-256 of every file.

    Raises:
        RepositoryError: One is missing, cannot be read, or differs.
    """
    for file in files:
        damage = damage_of(folder, file)
        if damage is not None:
            has = "" if damage.found.startswith("cannot") else "has "
            raise RepositoryError(
                f"{folder / file.path} {has}{damage.found}, the manifest says {damage.wanted}: "
                f"{damage.cause}; copy or build the version again"
            )
