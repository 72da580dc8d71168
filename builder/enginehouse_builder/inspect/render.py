"""Shows manifests as text, on a terminal or not: what is the same for every task."""

from collections.abc import Sequence

from rich.console import Console

from enginehouse_builder.manifest import Manifest

from .classifier import classifier_facts, classifier_line, show_encoder
from .decoder import decoder_facts, decoder_line, show_decoder
from .find import Version
from .tables import facts_to, size, table_of
from .verify import files_of

__all__ = ["show_repository", "show_version"]


def show_repository(console: Console, versions: Sequence[Version]) -> None:
    """A line an engine of every version."""
    table = table_of(
        "model", "version", "task", "engine", "worst error", "agree", "size", "created"
    )
    for version in versions:
        manifest = version.manifest
        if manifest is None:
            table.add_row(version.folder.parent.name, version.folder.name, "unreadable")
            continue
        encoders = [classifier_line(engine) for engine in manifest.engines]
        decoders = [decoder_line(engine) for engine in manifest.decoders]
        for line in (*encoders, *decoders):
            table.add_row(
                manifest.model,
                str(manifest.version),
                manifest.task,
                *line,
                size(sum(file.size_bytes for file in files_of(manifest))),
                manifest.created,
            )
    console.print(table)
    for version in versions:
        if version.fault:
            console.print(version.fault, markup=False, soft_wrap=True)


def show_version(console: Console, version: Version, manifest: Manifest) -> None:
    """Everything that matters of one version."""
    console.print(f"{manifest.model} version {manifest.version}", style="bold", markup=False)
    facts_to(console, _facts(version, manifest))
    for encoder in manifest.engines:
        show_encoder(console, encoder, manifest, version.folder)
    for decoder in manifest.decoders:
        show_decoder(console, decoder, manifest, version.folder)


def _facts(version: Version, manifest: Manifest) -> dict[str, str]:
    source = manifest.source
    files = files_of(manifest)
    of_task = classifier_facts if manifest.task == "classify" else decoder_facts
    return {
        "folder": str(version.folder),
        "created": f"{manifest.created} in {_durations(manifest)}",
        "source": f"{source.id} {source.revision}".rstrip() + f" ({source.architecture})",
        "weights": f"SHA-256 {source.sha256}",
        **of_task(manifest),
        "files": f"{len(files)}, {size(sum(file.size_bytes for file in files))}",
        "tools": ", ".join(f"{name} {number}" for name, number in manifest.tools.items()),
    }


def _durations(manifest: Manifest) -> str:
    total = sum(stage.seconds for stage in manifest.build)
    slow = ", ".join(f"{s.stage} {s.seconds:.1f}" for s in manifest.build if s.seconds >= 0.05)
    return f"{total:.1f} s" + (f" ({slow})" if slow else "")
