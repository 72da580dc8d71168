"""A version's manifest, as a server needs it: readable, and in the folder that it names."""

from pathlib import Path

from enginehouse_builder.manifest import Manifest, ManifestError, read_manifest
from enginehouse_server.errors import RepositoryError

from .verdict import AnyEngine

__all__ = ["all_engines", "name_of", "read_version", "tokenizer_file"]


def read_version(folder: Path) -> Manifest:
    """The manifest of a version's folder.

    Raises:
        RepositoryError: It cannot be read, is of another manifest version, or of another folder.
    """
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        raise RepositoryError(str(error)) from error
    if (manifest.model, str(manifest.version)) != (folder.parent.name, folder.name):
        raise RepositoryError(
            f"{folder} holds {name_of(manifest)}: a version's folder must be <model>/<version>"
        )
    return manifest


def all_engines(manifest: Manifest) -> tuple[AnyEngine, ...]:
    """The engines, of whatever task."""
    return (*manifest.engines, *manifest.decoders)


def name_of(manifest: Manifest) -> str:
    """What messages call a version."""
    return f"{manifest.model} version {manifest.version}"


def tokenizer_file(manifest: Manifest) -> str:
    """Path of the tokenizer.json in the version's folder.

    Raises:
        RepositoryError: There is none.
    """
    for file in manifest.text:
        if file.path.endswith("/tokenizer.json"):
            return file.path
    raise RepositoryError(f"{name_of(manifest)} has no tokenizer.json: build it again")
