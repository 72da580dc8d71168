"""Finds the versions of models in a repository folder, without opening any."""

import logging
from pathlib import Path
from typing import NamedTuple

from enginehouse_server.errors import RepositoryError

__all__ = ["Found", "is_version_number", "scan"]

_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """A folder that claims to be a version of a model."""

    model: str
    version: int
    folder: Path


def scan(repository: Path) -> list[Found]:
    """Every `<model>/<version>` folder, ordered by model and then version, newest first.

    Hidden folders (builds in progress), names that are not a positive number and folders of models
    that cannot be read (a file system's lost+found) are passed over.

    Raises:
        RepositoryError: The repository is not a readable folder.
    """
    try:
        models = sorted(p for p in repository.iterdir() if _is_candidate(p))
    except OSError as error:
        raise RepositoryError(
            f"the repository {repository} cannot be read ({error.strerror}): "
            "build a model into it, or name another with --repository"
        ) from error
    found = [version for model in models for version in _versions_of(model)]
    return sorted(found, key=lambda f: (f.model, -f.version))


def _versions_of(model: Path) -> list[Found]:
    try:
        return [
            Found(model.name, int(folder.name), folder)
            for folder in model.iterdir()
            if _is_candidate(folder) and is_version_number(folder.name)
        ]
    except OSError as error:
        _log.warning("%s is passed over: it cannot be read (%s)", model, error.strerror)
        return []


def _is_candidate(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def is_version_number(name: str) -> bool:
    """Whether a folder of that name can be a version: a positive number, as it is written."""
    return name.isascii() and name.isdigit() and name[0] != "0"
