"""Builds a decoder: export, quantize, certify, measure."""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from enginehouse_builder.certify import CertifiedDecoder, ContinuationFile, choose_prompts
from enginehouse_builder.display import StageDisplay
from enginehouse_builder.errors import SpecError
from enginehouse_builder.export import ExportedDecoder
from enginehouse_builder.manifest import Limits
from enginehouse_builder.spec import BuildSpec
from enginehouse_builder.stages import MODEL_FILE, Result
from enginehouse_builder.stages.generate import (
    DecoderGraph,
    StepTimes,
    run_certify,
    run_conversion,
    run_export,
    run_measure,
    run_quantize,
    run_reference,
)
from enginehouse_builder.version_files import Parts, ProvenDecoder, ProvenGenerator
from enginehouse_server.engine.create import attention_for
from enginehouse_server.engine.decoder import DecoderPrecision, DecoderSpec, LayerGeometry
from enginehouse_server.text import Tokenizer

from .building import Building, by_target
from .reach import within_reach

__all__ = ["build_decoder", "decoder_limits"]

_STEP_TOKENS = 512


def decoder_limits(spec: BuildSpec, max_tokens: int) -> Limits:
    """The limits of a build whose sequences have at most `max_tokens`.

    Raises:
        SpecError: Not even a token of each sequence would fit into a step.
    """
    step_tokens = spec.max_batch_tokens or max(spec.max_batch, _STEP_TOKENS)
    if step_tokens < spec.max_batch:
        raise SpecError(
            f"--max-batch-tokens is {step_tokens}, but a token of each of --max-batch "
            f"{spec.max_batch} sequences must fit: raise the first or lower the second"
        )
    return Limits(max_tokens, spec.max_batch, step_tokens)


def build_decoder(building: Building) -> Parts:
    """Runs the stages of a decoder.

    Raises:
        BuildError: One failed.
    """
    exported = within_reach(building, _export)
    context = building.context  # its limit may be lower now
    limits = decoder_limits(context.spec, exported.value.max_tokens)
    graphs = _graphs(building, exported, limits)
    texts = [" ".join(filter(None, sample)) for sample in context.samples.inputs]
    windows = [layer.window for layer in exported.value.generate.layers]
    lengths = [*windows, *exported.value.rope_lengths]
    with building.stage("certify") as stage:
        tokenizer = Tokenizer(exported.folder / "tokenizer" / "tokenizer.json", limits.max_tokens)
        prompts = choose_prompts(texts, tokenizer, limits.max_tokens, lengths)
        reference = run_reference(context, exported.value, prompts, stage.report)
        converted = _converted(building, stage, graphs, exported, reference)
        certified = []
        for graph in graphs:
            count = len(reference.value.continuations)
            stage.report(f"going on with {count} prompts at once on {graph.backend}")
            certified.append(run_certify(context, graph, reference))
        building.took("certify", reference, *converted, *certified)
        stage.result = _proof(converted) + by_target(
            (graph.backend, _verdict(found.value) + found.note)
            for graph, found in zip(graphs, certified, strict=True)
        )
    engines = tuple(
        ProvenDecoder(
            backend=graph.backend,
            model=graph.spec.model,
            precision=graph.spec.precision,
            cache_precision=graph.spec.cache_precision,
            attention=graph.spec.attention,
            certified=found.value,
            step_times=times.value.times,
        )
        for graph, found, times in zip(graphs, certified, _measure(building, graphs), strict=True)
    )
    return Parts(
        resolved=context.resolved,
        exported=exported,
        limits=limits,
        reference=reference,
        proven=ProvenGenerator(exported.value.generate, engines),
    )


def _export(building: Building) -> Result[ExportedDecoder]:
    with building.stage("export") as stage:
        exported = run_export(building.context, stage.report)
        building.took("export", exported)
        task = exported.value.generate
        stage.result = (
            f"{len(task.layers)} layers, {task.vocab_size} tokens in the vocabulary, sequences of "
            f"up to {exported.value.max_tokens}{_held(exported.value)}{exported.note}"
        )
    return exported


def _held(exported: ExportedDecoder) -> str:
    """Where the answers are not transformers' own for texts of every length, in words."""
    if not exported.held_beyond:
        return ""
    if exported.rope_grows:
        return (
            f", with the rope of texts of {exported.max_tokens} tokens for shorter ones too "
            f"(transformers has another for each length beyond {exported.held_beyond}; "
            f"--max-tokens {exported.held_beyond} has that of texts up to it)"
        )
    return (
        f", with the rope of texts beyond {exported.held_beyond} for shorter ones too (transformers"
        f" changes it there; --max-tokens {exported.held_beyond} has the other for all)"
    )


def _graphs(
    building: Building, exported: Result[ExportedDecoder], limits: Limits
) -> list[DecoderGraph]:
    """The graph of every target; those of one precision read the same file."""
    targets = building.context.spec.targets
    layers = tuple(LayerGeometry(*astuple(layer)) for layer in exported.value.generate.layers)
    files: dict[DecoderPrecision, tuple[Path, str]] = {}
    graphs = []
    for target in targets:
        attention = attention_for(target.backend, layers)
        cache_precision = building.context.spec.decoder_cache_precision(attention, target.precision)
        if target.precision not in files:
            files[target.precision] = _file(building, exported, target.precision)
        model, key = files[target.precision]
        spec = DecoderSpec(
            model=model,
            precision=target.precision,
            cache_precision=cache_precision,
            layers=layers,
            vocab_size=exported.value.generate.vocab_size,
            max_tokens=limits.max_tokens,
            max_step_tokens=limits.max_batch_tokens,
            max_sequences=limits.max_batch,
            cache_bytes=0,
            num_threads=building.context.num_threads,
            attention=attention,
        )
        graphs.append(DecoderGraph(target.backend, spec, key, exported.value.is_mixture))
    return graphs


def _file(
    building: Building, exported: Result[ExportedDecoder], precision: DecoderPrecision
) -> tuple[Path, str]:
    """The graph of a precision, the canonical one or one of rounded weights, and its key."""
    if precision not in ("int8", "int4"):
        return exported.folder / MODEL_FILE, exported.key
    with building.stage("quantize") as stage:
        quantized = run_quantize(building.context, exported, precision, stage.report)
        building.took("quantize", quantized)
        found = quantized.value
        counts = {"int4": found.num_int4, "int8": found.num_int8}
        stage.result = (
            ", ".join(f"{count} matrices in {kind}" for kind, count in counts.items() if count)
            + f": {found.source_bytes / 1e6:.1f} MB of weights are now "
            f"{found.target_bytes / 1e6:.1f} MB{quantized.note}"
        )
    return quantized.folder / MODEL_FILE, quantized.key


def _converted(
    building: Building,
    stage: StageDisplay,
    graphs: Sequence[DecoderGraph],
    exported: Result[ExportedDecoder],
    reference: Result[ContinuationFile],
) -> list[Result[CertifiedDecoder]]:
    """The proof of the conversion, once for all targets, unless one of them is it."""
    if any(graph.is_exact for graph in graphs):
        return []
    stage.report("proving the conversion in fp32")
    return [run_conversion(building.context, graphs[0], exported, reference)]


def _proof(converted: Sequence[Result[CertifiedDecoder]]) -> str:
    return "".join(
        f"the conversion itself is exact ({found.value.certificate.num_prompts} prompts in "
        f"fp32{found.note}); "
        for found in converted
    )


def _measure(building: Building, graphs: Sequence[DecoderGraph]) -> list[Result[StepTimes]]:
    measured, said = [], []
    with building.stage("measure") as stage:
        for graph in graphs:
            stage.report(f"timing steps of {graph.backend} on {graph.spec.num_threads} threads")
            found = run_measure(building.context, graph)
            measured.append(found)
            times = found.value.times
            one = next((t for t in times if t.kind == "decode"), times[0])
            said.append(
                (
                    graph.backend,
                    f"{len(times)} steps; {one.median_ms:.2f} ms for a token of "
                    f"{one.num_sequences} sequence after {one.num_cached}{found.note}",
                )
            )
        building.took("measure", *measured)
        stage.result = by_target(said)
    return measured


def _verdict(certified: CertifiedDecoder) -> str:
    found = certified.certificate
    verdict = (
        f"{found.num_prompts} prompts of up to {found.longest_prompt} tokens: "
        f"{found.token_agreement:.1%} of {found.num_tokens} greedy tokens are the original's"
    )
    if found.token_agreement < 1:
        verdict += (
            f", {found.top1_agreement:.1%} given its text ({certified.clear_agreement:.1%} without "
            f"near ties), {found.mean_kl:.2g} nats apart"
        )
    return (
        f"{verdict}; perplexity {found.perplexity:.4g} instead of {found.reference_perplexity:.4g}"
    )
