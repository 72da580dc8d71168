"""Builds a classifier: export, quantize, certify, measure."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from enginehouse_builder.buckets import default_buckets
from enginehouse_builder.certify import Certified, Judged
from enginehouse_builder.engine_file import EngineFile
from enginehouse_builder.errors import SpecError
from enginehouse_builder.export import ExportedClassifier
from enginehouse_builder.manifest import Bucket, ClassifyTask, Limits
from enginehouse_builder.samples import read_samples, samples_for
from enginehouse_builder.spec import BuildSpec
from enginehouse_builder.stages import MODEL_FILE, Result
from enginehouse_builder.stages.classify import (
    Graph,
    Latencies,
    run_certify,
    run_export,
    run_measure,
    run_padding,
    run_quantize,
    run_reference,
)
from enginehouse_builder.version_files import Parts, ProvenClassifier, ProvenEncoder
from enginehouse_server.text import Encoding, Tokenizer

from .building import Building, by_target

__all__ = ["build_classifier", "check_classifier", "classifier_limits"]

_MIN_BATCH_TOKENS = 1024  # for a server with more threads; what one warms up is its own choice


def check_classifier(spec: BuildSpec) -> None:
    """Refuses settings that only a decoder has.

    Raises:
        SpecError: There is one.
    """
    for target in spec.targets:
        _ = target.encoder_precision
    if spec.cache_precision is not None:
        raise SpecError("--cache-precision is for decoders: a classifier caches nothing")


def classifier_limits(spec: BuildSpec, max_tokens: int) -> Limits:
    """The limits of a build whose rows have at most `max_tokens`.

    Raises:
        SpecError: Not even one longest row would fit into a batch.
    """
    max_batch_tokens = spec.max_batch_tokens or max(max_tokens, _MIN_BATCH_TOKENS)
    if max_batch_tokens < max_tokens:
        raise SpecError(
            f"--max-batch-tokens is {max_batch_tokens}, but one row of --max-tokens "
            f"{max_tokens} must fit: raise the first or lower the second"
        )
    return Limits(max_tokens, spec.max_batch, max_batch_tokens)


def build_classifier(building: Building) -> Parts:
    """Runs the stages of a classifier.

    Raises:
        BuildError: One failed.
    """
    context = building.context
    exported = _export(building)
    value = exported.value
    limits = classifier_limits(context.spec, value.max_tokens)
    texts = samples_for(context.samples, accepts_pairs=value.classify.accepts_pairs)
    tokenizer = Tokenizer(exported.folder / "tokenizer" / "tokenizer.json", limits.max_tokens)
    rows = tokenizer.encode(texts, truncate=True)
    graphs = _graphs(building, exported, limits, rows)
    with building.stage("certify") as stage:
        reference = run_reference(context, texts, limits.max_tokens, stage.report)
        stage.report("comparing alone and padded answers")
        judged = Judged("fp32", value.classify, limits)
        # A user's own samples may all be of one length, or a single one.
        shipped = samples_for(read_samples(None), accepts_pairs=value.classify.accepts_pairs)
        more = tokenizer.encode(shipped, truncate=True)
        canonical = replace(graphs[0].file, model=exported.folder / MODEL_FILE, precision="fp32")
        padding = run_padding(context, Graph(canonical, exported.key), judged, [*rows, *more])
        task = replace(
            value.classify, padding="invariant" if padding.value.is_invariant else "equal_length"
        )
        certified = []
        for graph in graphs:
            name = graph.file.backend
            stage.report(f"running {name} on {len(rows)} samples, alone and in batches")
            judged = Judged(graph.file.precision, task, limits)
            certified.append(run_certify(context, graph, judged, rows, reference))
        building.took("certify", reference, padding, *certified)
        stage.result = by_target(
            (graph.file.backend, _verdict(found.value, task) + found.note)
            for graph, found in zip(graphs, certified, strict=True)
        )
    buckets = default_buckets(limits, task)
    latencies = _measure(building, graphs, buckets)
    engines = tuple(
        ProvenEncoder(
            backend=graph.file.backend,
            model=graph.file.model,
            precision=graph.file.precision,
            certified=found.value,
            latency=times.value.by_shape,
        )
        for graph, found, times in zip(graphs, certified, latencies, strict=True)
    )
    return Parts(
        resolved=context.resolved,
        exported=exported,
        limits=limits,
        reference=reference,
        proven=ProvenClassifier(task, buckets, engines),
    )


def _export(building: Building) -> Result[ExportedClassifier]:
    with building.stage("export") as stage:
        exported = run_export(building.context, stage.report)
        building.took("export", exported)
        labels = len(exported.value.classify.labels)
        stage.result = (
            f"{labels} labels, rows of up to {exported.value.max_tokens} tokens{exported.note}"
        )
    return exported


def _graphs(
    building: Building,
    exported: Result[ExportedClassifier],
    limits: Limits,
    rows: Sequence[Encoding],
) -> list[Graph]:
    """The graph of every target: the canonical one, or its int8 form, made once."""
    targets = building.context.spec.targets
    canonical = exported.folder, exported.key
    is_rounded = any(target.encoder_precision == "int8" for target in targets)
    rounded = _rounded(building, exported, rows) if is_rounded else canonical
    graphs = []
    for target in targets:
        folder, key = rounded if target.encoder_precision == "int8" else canonical
        file = EngineFile(
            model=folder / MODEL_FILE,
            precision=target.encoder_precision,
            inputs=tuple(tensor.name for tensor in exported.value.inputs),
            pad_id=exported.value.pad_id,
            max_batch_tokens=limits.max_batch_tokens,
            num_threads=building.context.num_threads,
            backend=target.backend,
        )
        graphs.append(Graph(file, key))
    return graphs


def _rounded(
    building: Building, exported: Result[ExportedClassifier], rows: Sequence[Encoding]
) -> tuple[Path, str]:
    """Folder and key of the graph in int8."""
    with building.stage("quantize") as stage:
        quantized = run_quantize(building.context, exported, rows, stage.report)
        building.took("quantize", quantized)
        found = quantized.value
        stage.result = f"{found.num_int8} layers in int8"
        if found.num_fp32:
            stage.result += f", {found.num_fp32} that would lose too much in fp32"
        stage.result += quantized.note
    return quantized.folder, quantized.key


def _measure(
    building: Building, graphs: Sequence[Graph], buckets: Sequence[Bucket]
) -> list[Result[Latencies]]:
    context = building.context
    num_shapes = sum(len(bucket.batches) for bucket in buckets)
    latencies, said = [], []
    with building.stage("measure") as stage:
        for graph in graphs:
            name = graph.file.backend
            stage.report(
                f"timing up to {num_shapes} shapes of {name} on {context.num_threads} threads"
            )
            found = run_measure(context, graph, buckets)
            latencies.append(found)
            times = found.value.by_shape
            one = times[0]
            said.append(
                (
                    name,
                    f"{len(times)} of {num_shapes} shapes; {one.median_ms:.2f} ms for "
                    f"{one.batch} x {one.length} tokens{found.note}",
                )
            )
        building.took("measure", *latencies)
        stage.result = by_target(said)
    return latencies


def _verdict(certified: Certified, task: ClassifyTask) -> str:
    certificate = certified.certificate
    verdict = (
        f"{certificate.num_samples} samples: logits within {certificate.max_abs_error:.2g} "
        f"of the original's, which vary by {certificate.scale:.3g}"
    )
    if certificate.top1_agreement is not None and certified.clear_agreement is not None:
        verdict += f", {certificate.top1_agreement:.1%} decided alike"
        if certified.clear_agreement > certificate.top1_agreement:
            verdict += f" ({certified.clear_agreement:.1%} without near ties)"
    if task.padding == "equal_length":
        verdict += "; padding changes its answers, so only equal lengths will share a batch"
    return verdict
