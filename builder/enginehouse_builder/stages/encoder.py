"""The stages of a classifier's engines, each cached by what it depends on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from enginehouse_builder.cache import code_digest, key_of, versions_of
from enginehouse_builder.certify import (
    Certified,
    Judged,
    PaddingCheck,
    ReferenceFile,
    certify,
    check_padding,
)
from enginehouse_builder.engine_file import EngineFile, opened
from enginehouse_builder.manifest import Bucket, Latency, to_json
from enginehouse_builder.measure import Budget, measure
from enginehouse_builder.quantize import Calibration, Quantized, quantize
from enginehouse_server.engine.threads import default_lanes
from enginehouse_server.text import Encoding

from .workplace import BUILDER, MODEL_FILE, RESULT_CODE, SERVER, Report, Result, Workplace

__all__ = [
    "Graph",
    "Latencies",
    "run_certify",
    "run_measure",
    "run_padding",
    "run_quantize",
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


def run_quantize(
    place: Workplace,
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
        num_threads=place.num_threads,
    )
    source = exported.folder / MODEL_FILE
    return place.run(
        "quantize",
        key,
        Quantized,
        lambda folder: quantize(source, folder / MODEL_FILE, calibration, report),
    )


def run_padding(
    place: Workplace, graph: Graph, judged: Judged, rows: Sequence[Encoding]
) -> Result[PaddingCheck]:
    """Finds out whether padding changes the answers of a graph, in fp32."""
    key = key_of(
        code_digest([f"{BUILDER}.certify", f"{BUILDER}.buckets", *_ENGINE_CODE]),
        place.runtime_of(graph.file.backend),
        graph=graph.key,
        rows=_rows_sha256(rows),
        judged=to_json(judged),
        device=place.devices[graph.file.backend].name,
    )

    def make(_: Path) -> PaddingCheck:
        with opened(graph.file) as engine:
            return check_padding(engine.lanes[0], rows, judged)

    return place.run("padding", key, PaddingCheck, make)


def run_certify(
    place: Workplace,
    graph: Graph,
    judged: Judged,
    rows: Sequence[Encoding],
    reference: Result[ReferenceFile],
) -> Result[Certified]:
    """Certifies an engine, or fails."""
    key = key_of(
        code_digest([f"{BUILDER}.certify", *_ENGINE_CODE]),
        place.runtime_of(graph.file.backend),
        graph=graph.key,
        rows=_rows_sha256(rows),
        judged=to_json(judged),
        reference=reference.key,
        device=place.devices[graph.file.backend].name,
    )

    def make(_: Path) -> Certified:
        with opened(graph.file) as engine:
            return certify(engine, judged, rows, reference.value)

    return place.run("certify", key, Certified, make)


def run_measure(place: Workplace, graph: Graph, buckets: Sequence[Bucket]) -> Result[Latencies]:
    """Times a lane of an engine with as many as a server of these threads gives it by default."""
    key = key_of(
        code_digest([f"{BUILDER}.measure", *_ENGINE_CODE]),
        place.runtime_of(graph.file.backend),
        graph=graph.key,
        precision=graph.file.precision,
        buckets=[to_json(bucket) for bucket in buckets],
        num_threads=graph.file.num_threads,
        device=place.devices[graph.file.backend].name,
    )

    def make(_: Path) -> Latencies:
        served = replace(graph.file, num_lanes=default_lanes(graph.file.num_threads))
        with opened(served) as engine:
            return Latencies(measure(engine.lanes[0], buckets, Budget()))

    return place.run("measure", key, Latencies, make)


def _rows_sha256(rows: Sequence[Encoding]) -> str:
    """Of the tokens, whatever texts and tokenizer they come from."""
    tokens = [[list(row.ids), row.type_ids and list(row.type_ids)] for row in rows]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
