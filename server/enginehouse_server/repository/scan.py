"""Finds the versions of models in a repository folder, without opening any."""

from pathlib import Path
from typing import NamedTuple

from enginehouse_server.errors import RepositoryError

__all__ = ["Found", "scan"]


class Found(NamedTuple):
    """A folder that claims to be a version of a model."""

    model: str
    version: int
    folder: Path


def scan(repository: Path) -> list[Found]:
    """Every `<model>/<version>` folder, ordered by model and then version, newest first.

    Hidden folders (builds in progress) and names that are not a positive number are passed over.

    Raises:
        RepositoryError: The repository is not a readable folder.
    """
    try:
        models = sorted(p for p in repository.iterdir() if _is_candidate(p))
        versions = {m: [v for v in m.iterdir() if _is_candidate(v)] for m in models}
    except OSError as error:
        raise RepositoryError(
            f"the repository {repository} cannot be read ({error.strerror}): "
            "build a model into it, or name another with --repository"
        ) from error
    found = [
        Found(model.name, int(folder.name), folder)
        for model, folders in versions.items()
        for folder in folders
        if folder.name.isascii() and folder.name.isdigit() and folder.name[0] != "0"
    ]
    return sorted(found, key=lambda f: (f.model, -f.version))


def _is_candidate(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")
