"""The subcommand `check`."""

import json
from pathlib import Path

import click

from enginehouse_builder.manifest import to_json
from enginehouse_server.engine.machine import probe_machine
from enginehouse_server.errors import RepositoryError
from enginehouse_server.repository import CheckedVersion, check_version, read_machine, versions_at

from .lines import aligned

__all__ = ["check"]

_USAGE, _NOTHING_RUNS = 2, 4


@click.command(short_help="Say which engines of a repository run on a machine, and why not.")
@click.argument(
    "path",
    type=click.Path(path_type=Path),
    default=Path("repository"),
    envvar="ENGINEHOUSE_REPOSITORY",
)
@click.option(
    "--machine",
    "machine_file",
    type=click.Path(path_type=Path),
    help="JSON of another machine, from `enginehouse machine --json`; else this one.",
)
@click.option("--all", "every", is_flag=True, help="Check every version, not the newest alone.")
@click.option("--no-verify", is_flag=True, help="Do not hash the files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def check(
    path: Path, machine_file: Path | None, every: bool, no_verify: bool, as_json: bool
) -> None:
    """Say of every engine whether it runs on a machine; if not, what differs and what to do.

    PATH is a repository (default: ENGINEHOUSE_REPOSITORY, else ./repository), a model's folder or
    a version's. Nothing is loaded; files are compared with their hashes. What a model's probes
    say is found out when it is served. Exit codes: 0 every version has an engine that runs there,
    4 one has none, 2 wrong usage.
    """
    try:
        folders = versions_at(path, every=every)
        machine = read_machine(machine_file) if machine_file else probe_machine()
    except RepositoryError as error:
        click.echo(f"enginehouse check: {error}", err=True)
        raise SystemExit(_USAGE) from None
    found = []
    for folder in folders:
        version = check_version(folder, machine, verify=not no_verify)
        found.append(version)
        if not as_json:  # each as soon as it is known: hashing takes its time
            click.echo("\n".join(_lines(version)))
    if as_json:
        click.echo(json.dumps([_document(version) for version in found], ensure_ascii=False))
    if not all(version.takes for version in found):
        raise SystemExit(_NOTHING_RUNS)


def _lines(version: CheckedVersion) -> list[str]:
    number = f" version {version.version}" if version.version else ""
    lines = [f"{version.model}{number}  {version.folder}"]
    if version.fault:
        rows = [("cannot be served", version.fault), ("remedy", version.remedy)]
        return [*lines, *aligned(rows, "  ")]
    rows = []
    for engine in version.engines:
        verdict = engine.verdict
        name = f"{engine.target} {engine.precision}"
        if not verdict.runs:
            rows += [(name, f"does not run: {verdict.reason}"), ("", f"remedy: {verdict.remedy}")]
            continue
        rows.append((name, "runs, and serves" if engine.target == version.takes else "runs"))
        rows += [("", f"note: {note}") for note in verdict.notes]
    if not version.takes:
        rows.append(("serves", "nothing: no engine runs on this machine"))
    if version.better:
        rows.append(("better", version.better))
    return [*lines, *aligned(rows, "  ")]


def _document(version: CheckedVersion) -> dict[str, object]:
    engines = []
    for engine in version.engines:
        document = to_json(engine)
        assert isinstance(document, dict)
        engines.append(document | {"reason": engine.verdict.reason})
    return {
        "model": version.model,
        "version": version.version,
        "folder": str(version.folder),
        "fault": version.fault,
        "remedy": version.remedy,
        "engines": engines,
        "takes": version.takes,
        "better": version.better,
    }
