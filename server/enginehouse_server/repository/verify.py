"""Proves that a version's files are those that its manifest was written for."""

from pathlib import Path

from enginehouse_builder.manifest import File, sha256_of
from enginehouse_server.errors import RepositoryError

__all__ = ["verify_files"]


def verify_files(folder: Path, files: list[File]) -> None:
    """Checks size and SHA-256 of every file.

    Raises:
        RepositoryError: One is missing, cannot be read, or differs.
    """
    for file in files:
        path = folder / file.path
        try:
            size = path.stat().st_size
            if size != file.size_bytes:
                raise RepositoryError(
                    f"{path} has {size} bytes, the manifest says {file.size_bytes}: "
                    "the copy is damaged or unfinished; copy or build the version again"
                )
            found = sha256_of(path)
        except OSError as error:
            raise RepositoryError(f"{path} cannot be read: {error.strerror}") from error
        if found != file.sha256:
            raise RepositoryError(
                f"{path} has SHA-256 {found}, the manifest says {file.sha256}: "
                "the file was changed; copy or build the version again"
            )
