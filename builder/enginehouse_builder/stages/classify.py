"""The stages of a classifier, each cached by what it depends on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from enginehouse_builder.cache import code_digest, key_of, versions_of
from enginehouse_builder.certify import (
    Certified,
    Judged,
    PaddingCheck,
    ReferenceAnswer,
    ReferenceFile,
    certify,
    check_padding,
    write_reference,
)
from enginehouse_builder.engine_file import EngineFile, opened
from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export import ExportedClassifier, export_classifier
from enginehouse_builder.manifest import Bucket, Latency, to_json
from enginehouse_builder.measure import Budget, measure
from enginehouse_builder.quantize import Calibration, Quantized, quantize
from enginehouse_builder.reference import Reference
from enginehouse_server.engine.threads import default_lanes
from enginehouse_server.text import Encoding, TextInput

from .context import (
    BUILDER,
    MODEL_FILE,
    ORIGINAL_TOOLS,
    REFERENCE_FILE,
    RESULT_CODE,
    SERVER,
    Context,
    Report,
    Result,
)

__all__ = [
    "Graph",
    "Latencies",
    "run_certify",
    "run_export",
    "run_measure",
    "run_padding",
    "run_quantize",
    "run_reference",
]

_ENGINE_CODE = (f"{SERVER}.engine", f"{BUILDER}.engine_file", *RESULT_CODE, __name__)


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph to open as an engine, and the key of the stage that wrote it."""

    file: EngineFile
    key: str


@dataclass(frozen=True, slots=True)
class Latencies:
    """An engine's measured times."""

    by_shape: tuple[Latency, ...]


def run_export(context: Context, report: Report) -> Result[ExportedClassifier]:
    """Writes the canonical graph and the tokenizer."""
    key = key_of(
        code_digest([f"{BUILDER}.export", f"{SERVER}.text", *RESULT_CODE, __name__]),
        versions_of("onnx", "onnx-ir", "onnxscript", *ORIGINAL_TOOLS),
        task=context.resolved.task,
        max_tokens=context.spec.max_tokens,
        **context.original,
    )
    return context.run(
        "export",
        key,
        ExportedClassifier,
        lambda folder: export_classifier(context.resolved, context.spec, folder, report),
    )


def run_quantize(
    context: Context,
    exported: Result[ExportedClassifier],
    rows: Sequence[Encoding],
    report: Report,
) -> Result[Quantized]:
    """Writes the int8 graph."""
    key = key_of(
        code_digest([f"{BUILDER}.quantize", *_ENGINE_CODE]),
        versions_of("onnx", "numpy", "openvino"),
        source=exported.key,
        rows=_rows_sha256(rows),
    )
    calibration = Calibration(
        rows=rows,
        inputs=tuple(tensor.name for tensor in exported.value.inputs),
        pad_id=exported.value.pad_id,
        num_threads=context.num_threads,
    )
    source = exported.folder / MODEL_FILE
    return context.run(
        "quantize",
        key,
        Quantized,
        lambda folder: quantize(source, folder / MODEL_FILE, calibration, report),
    )


def run_reference(
    context: Context, texts: Sequence[TextInput], max_tokens: int, report: Report
) -> Result[ReferenceFile]:
    """Asks the original, in fp32."""
    tools = versions_of(*ORIGINAL_TOOLS)
    key = key_of(
        code_digest([f"{BUILDER}.reference", f"{BUILDER}.export", *RESULT_CODE, __name__]),
        tools,
        texts=[list(text) for text in texts],
        samples=context.samples.sha256,
        max_tokens=max_tokens,
        **context.original,
    )

    def make(folder: Path) -> ReferenceFile:
        report(f"asking the original {len(texts)} samples")
        logits = Reference(context.resolved, context.spec).logits(texts, max_tokens)
        _check_numbers(texts, logits)
        answers = tuple(
            ReferenceAnswer(text.text, text.text_pair, tuple(row))
            for text, row in zip(texts, logits.tolist(), strict=True)
        )
        name = f"transformers {tools['transformers']} fp32"
        found = ReferenceFile(name, context.samples.sha256, max_tokens, answers)
        write_reference(found, folder / REFERENCE_FILE)
        return found

    return context.run("reference", key, ReferenceFile, make)


def run_padding(
    context: Context, graph: Graph, judged: Judged, rows: Sequence[Encoding]
) -> Result[PaddingCheck]:
    """Finds out whether padding changes the answers of a graph, in fp32."""
    key = key_of(
        code_digest([f"{BUILDER}.certify", f"{BUILDER}.buckets", *_ENGINE_CODE]),
        context.runtime_of(graph.file.backend),
        graph=graph.key,
        rows=_rows_sha256(rows),
        judged=to_json(judged),
        device=context.devices[graph.file.backend].name,
    )

    def make(_: Path) -> PaddingCheck:
        with opened(graph.file) as engine:
            return check_padding(engine.lanes[0], rows, judged)

    return context.run("padding", key, PaddingCheck, make)


def run_certify(
    context: Context,
    graph: Graph,
    judged: Judged,
    rows: Sequence[Encoding],
    reference: Result[ReferenceFile],
) -> Result[Certified]:
    """Certifies an engine, or fails."""
    key = key_of(
        code_digest([f"{BUILDER}.certify", *_ENGINE_CODE]),
        context.runtime_of(graph.file.backend),
        graph=graph.key,
        rows=_rows_sha256(rows),
        judged=to_json(judged),
        reference=reference.key,
        device=context.devices[graph.file.backend].name,
    )

    def make(_: Path) -> Certified:
        with opened(graph.file) as engine:
            return certify(engine, judged, rows, reference.value)

    return context.run("certify", key, Certified, make)


def run_measure(context: Context, graph: Graph, buckets: Sequence[Bucket]) -> Result[Latencies]:
    """Times a lane of an engine with as many as a server of these threads gives it by default."""
    key = key_of(
        code_digest([f"{BUILDER}.measure", *_ENGINE_CODE]),
        context.runtime_of(graph.file.backend),
        graph=graph.key,
        precision=graph.file.precision,
        buckets=[to_json(bucket) for bucket in buckets],
        num_threads=graph.file.num_threads,
        device=context.devices[graph.file.backend].name,
    )

    def make(_: Path) -> Latencies:
        served = replace(graph.file, num_lanes=default_lanes(graph.file.num_threads))
        with opened(served) as engine:
            return Latencies(measure(engine.lanes[0], buckets, Budget()))

    return context.run("measure", key, Latencies, make)


def _check_numbers(texts: Sequence[TextInput], logits: NDArray[np.float32]) -> None:
    wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if wrong.size:
        raise UnsupportedModelError(
            f"the original itself gives no number for {wrong.size} of {len(texts)} samples, first "
            f"{texts[wrong[0]].text[:60]!r}, in fp32: its weights are damaged, or it overflows"
        )


def _rows_sha256(rows: Sequence[Encoding]) -> str:
    """Of the tokens, whatever texts and tokenizer they come from."""
    tokens = [[list(row.ids), row.type_ids and list(row.type_ids)] for row in rows]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
