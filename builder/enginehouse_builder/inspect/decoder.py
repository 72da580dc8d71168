"""Shows what is particular to a decoder."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path

from rich.console import Console

from enginehouse_builder.manifest import (
    AttentionLayer,
    DecoderEngine,
    GenerateTask,
    GenerationDefaults,
    Manifest,
    StepTime,
    TokenProbe,
)

from .plan import plan_facts
from .tables import facts_to, share, table_of

__all__ = ["decoder_facts", "decoder_line", "show_decoder"]

_CACHE_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "u8": 8}
_SHOWN_TOKENS = 10
_ATTENDS = {
    "paged": "paged: by an operator of the runtime, over blocks that sequences may share",
    "slots": "slots: over a slot of each sequence, as long as the longest",
}


def decoder_line(engine: DecoderEngine) -> tuple[str, str, str]:
    """Engine, worst error and agreement, for a list of versions."""
    certificate = engine.certificate
    return (
        f"{engine.target} {engine.precision}",
        f"{certificate.max_abs_error / certificate.scale:.2g}",
        share(certificate.top1_agreement),
    )


def decoder_facts(manifest: Manifest) -> dict[str, str]:
    """What it generates, how it attends, and what its limits are."""
    limits, task = manifest.limits, manifest.generate
    facts = {
        "limits": f"{limits.max_tokens} tokens a sequence, {limits.max_batch} sequences at once, "
        f"{limits.max_batch_tokens} new tokens a step"
    }
    if task is None:
        return facts
    template = "with a chat template" if task.has_chat_template else "no chat template"
    facts["task"] = f"{manifest.task}, {task.vocab_size} tokens in the vocabulary, {template}"
    facts["attention"] = _attention(task.layers)
    facts["ends at"] = _ends(task)
    facts["sampling"] = _defaults(task.defaults)
    if task.lowered:
        facts["lowered to"] = task.lowered
    return facts


def show_decoder(console: Console, engine: DecoderEngine, manifest: Manifest, folder: Path) -> None:
    """An engine with its certificate, probes and times."""
    console.print(
        f"\nengine {engine.target} {engine.precision}, cache in {engine.cache_precision}: "
        f"{engine.model}",
        style="bold",
        markup=False,
    )
    facts_to(console, _engine_facts(engine, manifest) | plan_facts(engine, folder))
    _show_probes(console, engine.probes)
    for kind, of in (("prefill", "tokens of one prompt"), ("decode", "sequences, a token each")):
        _show_times(console, [t for t in engine.step_times if t.kind == kind], kind, of)


def _engine_facts(engine: DecoderEngine, manifest: Manifest) -> dict[str, str]:
    found = engine.certificate
    facts = {
        "ran on": f"{found.runtime}, {engine.device}",
        "compared": f"with {found.reference} on {found.num_prompts} prompts of up to "
        f"{found.longest_prompt} tokens (SHA-256 of the samples {found.samples_sha256[:12]}…)",
        "tokens": f"{share(found.token_agreement)} of {found.num_tokens} greedy tokens are the "
        f"original's, {share(found.top1_agreement)} given its own text",
        "error": f"a logit at most {found.max_abs_error:.3g}, "
        f"{found.max_abs_error / found.scale:.2g} of the spread {found.scale:.3g}, "
        f"{found.tolerance:g} allowed; distributions {found.mean_kl:.2g} nats apart",
        "perplexity": f"{found.perplexity:.5g} on the samples, the original's "
        f"{found.reference_perplexity:.5g}",
    }
    facts["attends"] = _ATTENDS[engine.attention]
    if manifest.generate is not None:
        facts["cache"] = _cache(engine, manifest.generate.layers)
    return facts


def _cache(engine: DecoderEngine, layers: Sequence[AttentionLayer]) -> str:
    """The cache's own steps and offsets, where it has some, come on top."""
    width = sum(layer.num_kv_heads * (layer.key_dim + layer.value_dim) for layer in layers)
    num_bytes = width * _CACHE_BITS[engine.cache_precision] / 8
    return f"{num_bytes / 1e3:.1f} kB a token, in {engine.cache_precision}"


def _attention(layers: Sequence[AttentionLayer]) -> str:
    """Layers of one shape together, in their order of first appearance."""
    counts: dict[AttentionLayer, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return "; ".join(
        f"{count} layer{'s' * (count > 1)}: {_shape(layer)}" for layer, count in counts.items()
    )


def _shape(layer: AttentionLayer) -> str:
    width = str(layer.key_dim)
    if layer.value_dim != layer.key_dim:
        width += f" (values {layer.value_dim})"
    more = {
        f"window of {layer.window}": layer.window,
        f"scores capped at {layer.softcap:g}": layer.softcap,
        "linear bias": layer.has_slopes,
        "sinks": layer.has_sinks,
    }
    said = "".join(f", {text}" for text, is_there in more.items() if is_there)
    return f"{layer.num_heads} heads of {width} on {layer.num_kv_heads} of keys{said}"


def _ends(task: GenerateTask) -> str:
    return ", ".join(f"token {token}" for token in task.eos_ids) or "no token: at the limit only"


def _defaults(defaults: GenerationDefaults) -> str:
    said = {f.name: getattr(defaults, f.name) for f in fields(defaults)}
    known = [f"{name} {value}" for name, value in said.items() if value is not None]
    return ", ".join(known) or "nothing said by the model"


def _show_probes(console: Console, probes: Sequence[TokenProbe]) -> None:
    table = table_of("probe: tokens", "goes on with", "logit")
    for probe in probes:
        shown = " ".join(str(token) for token in probe.tokens[:_SHOWN_TOKENS])
        table.add_row(f"{len(probe.prompt)}", shown, f"{probe.top[0][1]:.3f}")
    console.print()
    console.print(table)


def _show_times(console: Console, times: Sequence[StepTime], kind: str, of: str) -> None:
    """Milliseconds, a row a size and a column for what each sequence had before."""
    if not times:
        return
    before = sorted({time.num_cached for time in times})
    table = table_of(f"ms: {kind} {of}", *(f"after {count}" for count in before))
    by_size = sorted(times, key=lambda t: t.num_tokens)
    for size, row in groupby(by_size, key=lambda t: t.num_tokens):
        found = {time.num_cached: time.median_ms for time in row}
        table.add_row(str(size), *(f"{found[c]:.2f}" if c in found else "" for c in before))
    console.print()
    console.print(table)
