"""Builds a classifier: exports the original, asks it, and makes the engines from the graph."""

from dataclasses import replace

from enginehouse_builder.buckets import default_buckets
from enginehouse_builder.certify import Judged
from enginehouse_builder.errors import SpecError
from enginehouse_builder.export import ExportedClassifier
from enginehouse_builder.manifest import Limits
from enginehouse_builder.samples import read_samples, samples_for
from enginehouse_builder.sources import EncoderSource
from enginehouse_builder.spec import BuildSpec
from enginehouse_builder.stages import MODEL_FILE, Result
from enginehouse_builder.stages.classify import run_export, run_reference
from enginehouse_builder.stages.context import Context
from enginehouse_builder.stages.encoder import run_padding
from enginehouse_builder.version_files import (
    Origin,
    Parts,
    ProvenClassifier,
    graph_key,
    original_items,
)
from enginehouse_server.text import Tokenizer

from .building import Building
from .encoder import build_encoders, graph_file

__all__ = ["build_classifier", "check_classifier", "classifier_limits"]

_MIN_BATCH_TOKENS = 1024  # for a server with more threads; what one warms up is its own choice
_MIN_GPU_BATCH_TOKENS = 8192  # fewer leave a large GPU idle; a server on a processor takes fewer


def check_classifier(spec: BuildSpec) -> None:
    """Refuses settings that only a decoder has.

    Raises:
        SpecError: There is one.
    """
    if spec.cache_precision is not None:
        raise SpecError("--cache-precision is for decoders: a classifier caches nothing")


def classifier_limits(spec: BuildSpec, max_tokens: int, *, for_gpu: bool = False) -> Limits:
    """The limits of a build whose rows have at most `max_tokens`.

    Args:
        spec: What is built.
        max_tokens: Of a row.
        for_gpu: Whether one of its engines runs on a GPU.

    Raises:
        SpecError: Not even one longest row would fit into a batch.
    """
    least = _MIN_GPU_BATCH_TOKENS if for_gpu else _MIN_BATCH_TOKENS
    max_batch_tokens = spec.max_batch_tokens or max(max_tokens, least)
    if max_batch_tokens < max_tokens:
        raise SpecError(
            f"--max-batch-tokens is {max_batch_tokens}, but one row of --max-tokens "
            f"{max_tokens} must fit: raise the first or lower the second"
        )
    return Limits(max_tokens, spec.max_batch, max_batch_tokens)


def build_classifier(building: Building, context: Context) -> Parts:
    """Runs the stages of a classifier.

    Raises:
        BuildError: One failed.
    """
    exported = _export(building, context)
    source = _source(building, context, exported)
    engines = build_encoders(building, source)
    return Parts(
        model=context.resolved.name,
        origin=Origin(
            source=context.resolved.source,
            inputs=exported.value.inputs,
            outputs=exported.value.outputs,
            folder=exported.folder,
            items=original_items(exported.folder, source.reference.folder),
        ),
        limits=source.limits,
        proven=ProvenClassifier(source.task, source.buckets, engines),
    )


def _export(building: Building, context: Context) -> Result[ExportedClassifier]:
    with building.stage("export") as stage:
        exported = run_export(context, stage.report)
        building.took("export", exported)
        labels = len(exported.value.classify.labels)
        stage.result = (
            f"{labels} labels, rows of up to {exported.value.max_tokens} tokens{exported.note}"
        )
    return exported


def _source(
    building: Building, context: Context, exported: Result[ExportedClassifier]
) -> EncoderSource:
    """Asks the original, and finds out whether padding changes the graph's answers."""
    value = exported.value
    place = building.place
    for_gpu = any(
        target.is_plan or (target.backend == "onnxruntime" and place.host.has_cuda_provider)
        for target in place.targets
    )
    limits = classifier_limits(context.spec, value.max_tokens, for_gpu=for_gpu)
    texts = samples_for(context.samples, accepts_pairs=value.classify.accepts_pairs)
    tokenizer = Tokenizer(exported.folder / "tokenizer" / "tokenizer.json", limits.max_tokens)
    # A user's own samples may all be of one length, or a single one.
    shipped = samples_for(read_samples(None), accepts_pairs=value.classify.accepts_pairs)
    with building.stage("reference") as stage:
        reference = run_reference(context, texts, limits.max_tokens, stage.report)
        stage.report("comparing alone and padded answers")
        source = EncoderSource(
            folder=exported.folder,
            key=graph_key(exported.folder),
            inputs=value.inputs,
            task=value.classify,
            limits=limits,
            buckets=(),
            rows=tokenizer.encode(texts, truncate=True),
            reference=reference,
        )
        rows = [*source.rows, *tokenizer.encode(shipped, truncate=True)]
        file = graph_file(
            building, source, exported.folder / MODEL_FILE, building.place.proving_backend
        )
        judged = Judged("fp32", value.classify, limits)
        padding = run_padding(building.place, file, source.key, judged, rows)
        building.took("reference", reference, padding)
        task = replace(
            value.classify, padding="invariant" if padding.value.is_invariant else "equal_length"
        )
        stage.result = f"{len(texts)} samples answered by {reference.value.reference}"
        stage.result += reference.note
    return replace(source, task=task, buckets=default_buckets(limits, task))
