"""Shows manifests as text, on a terminal or not."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from enginehouse_builder.manifest import Certificate, Engine, Latency, Manifest, Probe

from .find import Version
from .verify import files_of

__all__ = ["show_repository", "show_version"]

_MAX_LABELS = 12
_MAX_ROWS, _MAX_COLUMNS = 12, 10  # of the latency table


def show_repository(console: Console, versions: Sequence[Version]) -> None:
    """A line a version."""
    table = _table("model", "version", "task", "engine", "worst error", "agree", "size", "created")
    for version in versions:
        manifest = version.manifest
        if manifest is None:
            table.add_row(version.folder.parent.name, version.folder.name, "unreadable")
            continue
        engine = manifest.engines[0]
        table.add_row(
            manifest.model,
            str(manifest.version),
            manifest.task,
            f"{engine.target} {engine.precision}",
            _relative(engine.certificate),
            _share(engine.certificate.top1_agreement),
            _size(sum(file.size_bytes for file in files_of(manifest))),
            manifest.created,
        )
    console.print(table)
    for version in versions:
        if version.fault:
            console.print(version.fault, markup=False, soft_wrap=True)


def show_version(console: Console, version: Version, manifest: Manifest) -> None:
    """Everything that matters of one version."""
    console.print(f"{manifest.model} version {manifest.version}", style="bold", markup=False)
    _show_facts(console, _facts(version, manifest))
    for engine in manifest.engines:
        title = f"\nengine {engine.target} {engine.precision}: {engine.model}"
        console.print(title, style="bold", markup=False)
        _show_facts(console, _engine_facts(engine))
        _show_probes(console, engine.probes, manifest)
        _show_latency(console, engine.latency)


def _facts(version: Version, manifest: Manifest) -> dict[str, str]:
    source, limits, task = manifest.source, manifest.limits, manifest.classify
    facts = {
        "folder": str(version.folder),
        "created": f"{manifest.created} in {_durations(manifest)}",
        "source": f"{source.id} {source.revision}".rstrip() + f" ({source.architecture})",
        "weights": f"SHA-256 {source.sha256}",
        "limits": f"{limits.max_tokens} tokens a text, {limits.max_batch} texts and "
        f"{limits.max_batch_tokens} padded tokens a batch",
    }
    if task is not None:
        more = f", … {len(task.labels)} in all" if len(task.labels) > _MAX_LABELS else ""
        facts["task"] = f"{manifest.task}, {task.problem}" + ", pairs" * task.accepts_pairs
        facts["labels"] = ", ".join(task.labels[:_MAX_LABELS]) + more
        facts["padding"] = {
            "invariant": "changes no answer",
            "equal_length": "changes answers: only texts of one length share a batch",
        }[task.padding]
    num_shapes = sum(len(bucket.batches) for bucket in manifest.buckets)
    facts["buckets"] = f"{len(manifest.buckets)} lengths, {num_shapes} shapes"
    files = files_of(manifest)
    facts["files"] = f"{len(files)}, {_size(sum(file.size_bytes for file in files))}"
    facts["tools"] = ", ".join(f"{name} {number}" for name, number in manifest.tools.items())
    return facts


def _engine_facts(engine: Engine) -> dict[str, str]:
    certificate = engine.certificate
    return {
        "ran on": f"{certificate.runtime}, {engine.device}",
        "compared": f"with {certificate.reference} on {certificate.num_samples} samples "
        f"(SHA-256 {certificate.samples_sha256[:12]}…)",
        "error": f"at most {certificate.max_abs_error:.3g}, mean {certificate.mean_abs_error:.3g}; "
        f"{_relative(certificate)} of what logits vary by ({certificate.scale:.3g}), "
        f"{certificate.tolerance:g} allowed",
        "agreement": f"{_share(certificate.top1_agreement)} decided alike, "
        f"least cosine {certificate.min_cosine:.6f}",
    }


def _show_probes(console: Console, probes: Sequence[Probe], manifest: Manifest) -> None:
    labels = manifest.classify.labels if manifest.classify else ()
    table = _table("probe", "best label", "logit")
    for probe in probes:
        text = probe.text if probe.text_pair is None else f"{probe.text} | {probe.text_pair}"
        best = max(range(len(probe.logits)), key=probe.logits.__getitem__)
        label = labels[best] if best < len(labels) else str(best)
        shown = text if len(text) <= 50 else text[:49] + "…"
        table.add_row(repr(shown), label, f"{probe.logits[best]:.3f}")
    console.print()
    console.print(table)


def _show_latency(console: Console, latency: Sequence[Latency]) -> None:
    """Milliseconds, a row a length and a column a batch size; a part of a large table."""
    by_shape = {(entry.length, entry.batch): entry.median_ms for entry in latency}
    lengths = _some(sorted({entry.length for entry in latency}), _MAX_ROWS)
    batches = _some(sorted({b for length, b in by_shape if length in lengths}), _MAX_COLUMNS)
    table = _table("ms: length", *(f"batch {batch}" for batch in batches))
    for length in lengths:
        times = (by_shape.get((length, batch)) for batch in batches)
        table.add_row(str(length), *("" if t is None else f"{t:.2f}" for t in times))
    console.print()
    console.print(table)
    shown = sum((length, batch) in by_shape for length in lengths for batch in batches)
    if shown < len(latency):
        console.print(f"{shown} of {len(latency)} measured shapes; --json has all", style="dim")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        is_number = column in ("version", "logit", "size", "worst error", "agree")
        is_number |= column.startswith("batch ")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    return table


def _show_facts(console: Console, facts: dict[str, str]) -> None:
    for name, value in facts.items():
        console.print(f"  {name:<10} {value}", markup=False, soft_wrap=True)


def _some(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, spread, the ends among them."""
    if len(values) <= most:
        return list(values)
    step = (len(values) - 1) / (most - 1)
    return [values[round(i * step)] for i in range(most)]


def _durations(manifest: Manifest) -> str:
    total = sum(stage.seconds for stage in manifest.build)
    slow = ", ".join(f"{s.stage} {s.seconds:.1f}" for s in manifest.build if s.seconds >= 0.05)
    return f"{total:.1f} s" + (f" ({slow})" if slow else "")


def _relative(certificate: Certificate) -> str:
    return f"{certificate.max_abs_error / certificate.scale:.2g}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
