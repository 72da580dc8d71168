"""Shows what is particular to a classifier."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from enginehouse_builder.manifest import Certificate, Engine, Latency, Manifest, Probe

from .plan import plan_facts
from .tables import facts_to, share, some, table_of

__all__ = ["classifier_facts", "classifier_line", "show_encoder"]

_MAX_LABELS = 12
_MAX_ROWS, _MAX_COLUMNS = 12, 10  # of the latency table


def classifier_line(engine: Engine) -> tuple[str, str, str]:
    """Engine, worst error and agreement, for a list of versions."""
    certificate = engine.certificate
    name = f"{engine.target} {engine.precision}"
    return name, _relative(certificate), share(certificate.top1_agreement)


def classifier_facts(manifest: Manifest) -> dict[str, str]:
    """What it decides, and in which shapes."""
    limits, task = manifest.limits, manifest.classify
    facts = {
        "limits": f"{limits.max_tokens} tokens a text, {limits.max_batch} texts and "
        f"{limits.max_batch_tokens} padded tokens a batch"
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
    return facts


def show_encoder(console: Console, engine: Engine, manifest: Manifest, folder: Path) -> None:
    """An engine with its certificate, probes and times."""
    title = f"\nengine {engine.target} {engine.precision}: {engine.model}"
    console.print(title, style="bold", markup=False)
    facts_to(console, _engine_facts(engine) | plan_facts(engine, folder))
    _show_probes(console, engine.probes, manifest)
    _show_latency(console, engine.latency)


def _engine_facts(engine: Engine) -> dict[str, str]:
    certificate = engine.certificate
    return {
        "ran on": f"{certificate.runtime}, {engine.device}",
        "compared": f"with {certificate.reference} on {certificate.num_samples} samples "
        f"(SHA-256 {certificate.samples_sha256[:12]}…)",
        "error": f"at most {certificate.max_abs_error:.3g}, mean {certificate.mean_abs_error:.3g}; "
        f"{_relative(certificate)} of what logits vary by ({certificate.scale:.3g}), "
        f"{certificate.tolerance:g} allowed",
        "agreement": f"{share(certificate.top1_agreement)} decided alike, "
        f"least cosine {certificate.min_cosine:.6f}",
    }


def _show_probes(console: Console, probes: Sequence[Probe], manifest: Manifest) -> None:
    labels = manifest.classify.labels if manifest.classify else ()
    table = table_of("probe", "best label", "logit")
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
    if not latency:
        return  # it did not run where it was built
    by_shape = {(entry.length, entry.batch): entry.median_ms for entry in latency}
    lengths = some(sorted({entry.length for entry in latency}), _MAX_ROWS)
    batches = some(sorted({b for length, b in by_shape if length in lengths}), _MAX_COLUMNS)
    table = table_of("ms: length", *(f"batch {batch}" for batch in batches))
    for length in lengths:
        times = (by_shape.get((length, batch)) for batch in batches)
        table.add_row(str(length), *("" if t is None else f"{t:.2f}" for t in times))
    console.print()
    console.print(table)
    shown = sum((length, batch) in by_shape for length in lengths for batch in batches)
    if shown < len(latency):
        console.print(f"{shown} of {len(latency)} measured shapes; --json has all", style="dim")


def _relative(certificate: Certificate) -> str:
    return f"{certificate.max_abs_error / certificate.scale:.2g}"
