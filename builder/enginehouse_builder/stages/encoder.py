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
from enginehouse_builder.engine_file import EngineFile, opened, opened_stand_in
from enginehouse_builder.manifest import Bucket, Latency, to_json
from enginehouse_builder.measure import Budget, measure
from enginehouse_builder.quantize import Calibration, EightBits, Quantized, quantize
from enginehouse_builder.sources import EncoderSource
from enginehouse_builder.targets import Target
from enginehouse_server.engine.threads import default_lanes
from enginehouse_server.text import Encoding

from .compile import EngineModel
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
    """An engine of a classifier that can be opened.

    Attributes:
        target: What it is for.
        file: What is opened here: the engine, or what stands for it.
        model: What it reads.
    """

    target: Target
    file: EngineFile
    model: EngineModel


@dataclass(frozen=True, slots=True)
class Latencies:
    """An engine's measured times."""

    by_shape: tuple[Latency, ...]


def run_quantize(
    place: Workplace, source: EncoderSource, precision: EightBits, report: Report
) -> Result[Quantized]:
    """Writes the graph in eight bits."""
    key = key_of(
        code_digest([f"{BUILDER}.quantize", *_ENGINE_CODE]),
        versions_of("onnx", "numpy", "openvino"),
        source=source.key,
        rows=_rows_sha256(source.rows),
        precision=precision,
    )
    calibration = Calibration(
        rows=source.rows,
        inputs=source.input_names,
        pad_id=source.task.pad_id,
        num_threads=place.num_threads,
    )
    canonical = source.folder / MODEL_FILE
    return place.run(
        "quantize",
        key,
        Quantized,
        lambda folder: quantize(canonical, folder / MODEL_FILE, calibration, report, precision),
    )


def run_padding(
    place: Workplace, file: EngineFile, key: str, judged: Judged, rows: Sequence[Encoding]
) -> Result[PaddingCheck]:
    """Finds out whether padding changes the answers of a graph, in fp32."""
    full_key = key_of(
        code_digest([f"{BUILDER}.certify", f"{BUILDER}.buckets", *_ENGINE_CODE]),
        place.runtime_of(file.backend),
        graph=key,
        rows=_rows_sha256(rows),
        judged=to_json(judged),
        device=place.devices[file.backend].name,
    )

    def make(_: Path) -> PaddingCheck:
        with opened(file) as engine:
            return check_padding(engine.lanes[0], rows, judged)

    return place.run("padding", full_key, PaddingCheck, make)


def run_certify(
    place: Workplace,
    graph: Graph,
    judged: Judged,
    rows: Sequence[Encoding],
    reference: Result[ReferenceFile],
) -> Result[Certified]:
    """Certifies an engine, or fails."""
    backend = graph.file.backend
    key = key_of(
        code_digest([f"{BUILDER}.certify", *_ENGINE_CODE]),
        place.runtime_of(backend),
        graph=graph.model.key,
        rows=_rows_sha256(rows),
        judged=to_json(judged),
        reference=reference.key,
        device=place.devices[backend].name,
    )

    def make(_: Path) -> Certified:
        is_here = graph.model.stand_in is None
        with opened(graph.file) if is_here else opened_stand_in(graph.file) as engine:
            return certify(engine, judged, rows, reference.value)

    return place.run("certify", key, Certified, make)


def run_measure(place: Workplace, graph: Graph, buckets: Sequence[Bucket]) -> Result[Latencies]:
    """Times a lane of an engine with as many as a server of these threads gives it by default."""
    file = graph.file
    key = key_of(
        code_digest([f"{BUILDER}.measure", *_ENGINE_CODE]),
        place.runtime_of(file.backend),
        graph=graph.model.key,
        precision=file.precision,
        buckets=[to_json(bucket) for bucket in buckets],
        num_threads=file.num_threads,
        device=place.devices[file.backend].name,
    )

    def make(_: Path) -> Latencies:
        # Lanes of a GPU share no threads: one is as fast beside others that are idle.
        num_lanes = 1 if file.plan else default_lanes(file.num_threads)
        served = replace(file, num_lanes=num_lanes)
        with opened(served) as engine:
            return Latencies(measure(engine.lanes[0], buckets, Budget()))

    return place.run("measure", key, Latencies, make)


def _rows_sha256(rows: Sequence[Encoding]) -> str:
    """Of the tokens, whatever texts and tokenizer they come from."""
    tokens = [[list(row.ids), row.type_ids and list(row.type_ids)] for row in rows]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
