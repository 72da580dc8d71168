"""The subcommand `inspect`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginehouse_builder.ending import ending_cleanly
from enginehouse_builder.errors import BuildError, SpecError
from enginehouse_builder.manifest import to_json

from .find import Version, find_version, find_versions
from .verify import faults_of, files_of

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["inspect"]


@click.command(short_help="Show what a repository holds, and how it was proven.")
@click.argument(
    "path",
    type=click.Path(path_type=Path),
    default=Path("repository"),
    envvar="ENGINEHOUSE_REPOSITORY",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--verify", is_flag=True, help="Hash every file and compare with the manifest.")
def inspect(path: Path, as_json: bool, verify: bool) -> None:
    """Show a version, the newest version of a model, or all of a repository.

    PATH is a version's folder, a model's folder or a repository (default: ENGINEHOUSE_REPOSITORY,
    else ./repository). Exit codes: 0 shown and, with --verify, whole; 1 damaged; 2 wrong path.
    """
    with ending_cleanly("inspect"):
        one = find_version(path)
        if one is not None and one.manifest is None:
            raise SpecError(one.fault)
        versions = find_versions(path) if one is None else [one]
        if as_json:
            documents = [_document(version) for version in versions]
            click.echo(json.dumps(documents if one is None else documents[0], ensure_ascii=False))
        else:
            _show(versions, is_list=one is None)
        if verify:
            _verify(versions, quiet=as_json)


def _show(versions: list[Version], *, is_list: bool) -> None:
    from .render import show_repository, show_version

    console = _console()
    manifest = versions[0].manifest
    if is_list or manifest is None:
        show_repository(console, versions)
    else:
        show_version(console, versions[0], manifest)


def _console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False)
    # Without a terminal nothing is lost to a width that nobody has.
    return console if console.is_terminal else Console(highlight=False, width=200)


def _document(version: Version) -> object:
    if version.manifest is None:
        return {"folder": str(version.folder), "fault": version.fault}
    return {"folder": str(version.folder), "manifest": to_json(version.manifest)}


def _verify(versions: list[Version], *, quiet: bool) -> None:
    """Hashes all files.

    Raises:
        BuildError: Some are not as they were published.
    """
    faults = []
    for version in versions:
        if version.manifest is None:
            faults.append(version.fault)
            continue
        found = faults_of(version.folder, version.manifest)
        faults += [f"{version.folder}: {fault}" for fault in found]
        if not found and not quiet:
            num_files = len(files_of(version.manifest))
            click.echo(f"{version.folder}: all {num_files} files are as published")
    if faults:
        raise BuildError("damaged; build or copy again:\n  " + "\n  ".join(faults))
