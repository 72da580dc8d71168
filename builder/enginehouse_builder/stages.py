"""The stages between the original and its publication, each cached by what it depends on.

A stage works in a folder of its own, from what earlier ones left in theirs, and its result lies
there as JSON beside the files. Those that have to do with an engine depend on the device too.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.openvino.device import OpenVinoDevice
from enginehouse_server.engine.threads import default_lanes
from enginehouse_server.text import Encoding, TextInput

from .cache import Cache, code_digest, key_of, versions_of
from .certify import (
    Certified,
    Judged,
    PaddingCheck,
    ReferenceAnswer,
    ReferenceFile,
    certify,
    check_padding,
    write_reference,
)
from .engine_file import EngineFile, opened
from .errors import UnsupportedModelError
from .export import ExportedClassifier, export_classifier
from .manifest import Bucket, Latency, from_json, to_json
from .measure import Budget, measure
from .quantize import Calibration, Quantized, quantize
from .reference import Reference
from .resolve import Resolved
from .samples import Samples
from .spec import BuildSpec

__all__ = [
    "MODEL_FILE",
    "REFERENCE_FILE",
    "Context",
    "Graph",
    "Latencies",
    "Report",
    "Result",
    "run_certify",
    "run_export",
    "run_measure",
    "run_padding",
    "run_quantize",
    "run_reference",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Report = Callable[[str], None]

MODEL_FILE = "model.onnx"
REFERENCE_FILE = "reference.json"

_RESULT_FILE = "result.json"
_DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")  # of the original, but weights
_BUILDER, _SERVER = "enginehouse_builder", "enginehouse_server"
_RESULT_CODE = (f"{_BUILDER}.manifest", __name__)
_ENGINE_CODE = (f"{_SERVER}.engine", f"{_BUILDER}.engine_file", *_RESULT_CODE)
_ORIGINAL_TOOLS = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True, slots=True)
class Context:
    """What every stage may use.

    Attributes:
        spec: What is asked for.
        cache: Keeps results.
        resolved: The original.
        samples: Texts to calibrate and certify on.
        device: What runs the engine.
        num_threads: Processor threads.
    """

    spec: BuildSpec
    cache: Cache
    resolved: Resolved
    samples: Samples
    device: OpenVinoDevice
    num_threads: int

    def run(self, stage: str, key: str, kind: type[T], make: Callable[[Path], T]) -> "Result[T]":
        """The stage's result, from the cache or made."""

        def fill(folder: Path) -> None:
            document = to_json(make(folder))
            (folder / _RESULT_FILE).write_text(json.dumps(document), encoding="utf-8")

        cached = self.cache.stage(stage, key, fill)
        document = json.loads((cached.folder / _RESULT_FILE).read_text(encoding="utf-8"))
        return Result(from_json(kind, document, stage), cached.folder, key, cached.seconds)

    @property
    def original(self) -> dict[str, object]:
        """What the original depends on, for a key."""
        return {
            "weights": self.resolved.source.sha256,
            "descriptions": _descriptions_sha256(self.resolved.folder),
            "trust": self.spec.trust_remote_code,
        }


@dataclass(frozen=True, slots=True)
class Result(Generic[T_co]):
    """What a stage gave.

    Attributes:
        value: Its result.
        folder: Holds its files, read-only.
        key: Names the result wherever it came from.
        seconds: What it took now; 0 if it was there.
    """

    value: T_co
    folder: Path
    key: str
    seconds: float

    @property
    def note(self) -> str:
        """Said after the result where it took no time."""
        return "" if self.seconds else " (cached)"


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
        code_digest([f"{_BUILDER}.export", f"{_SERVER}.text", *_RESULT_CODE]),
        versions_of("onnx", "onnx-ir", "onnxscript", *_ORIGINAL_TOOLS),
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
        code_digest([f"{_BUILDER}.quantize", *_ENGINE_CODE]),
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
    tools = versions_of(*_ORIGINAL_TOOLS)
    key = key_of(
        code_digest([f"{_BUILDER}.reference", f"{_BUILDER}.export", *_RESULT_CODE]),
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
        code_digest([f"{_BUILDER}.certify", f"{_BUILDER}.buckets", *_ENGINE_CODE]),
        versions_of("openvino"),
        graph=graph.key,
        rows=_rows_sha256(rows),
        judged=to_json(judged),
        device=context.device.name,
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
        code_digest([f"{_BUILDER}.certify", *_ENGINE_CODE]),
        versions_of("openvino"),
        graph=graph.key,
        rows=_rows_sha256(rows),
        judged=to_json(judged),
        reference=reference.key,
        device=context.device.name,
    )

    def make(_: Path) -> Certified:
        with opened(graph.file) as engine:
            return certify(engine, judged, rows, reference.value)

    return context.run("certify", key, Certified, make)


def run_measure(context: Context, graph: Graph, buckets: Sequence[Bucket]) -> Result[Latencies]:
    """Times a lane of an engine with as many as a server of these threads gives it by default."""
    key = key_of(
        code_digest([f"{_BUILDER}.measure", *_ENGINE_CODE]),
        versions_of("openvino"),
        graph=graph.key,
        precision=graph.file.precision,
        buckets=[to_json(bucket) for bucket in buckets],
        num_threads=graph.file.num_threads,
        device=context.device.name,
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


def _descriptions_sha256(folder: Path) -> str:
    """Of the files beside the weights: labels and tokenizer may change while weights stay."""
    digest = hashlib.sha256()
    for path in sorted(p for pattern in _DESCRIPTIONS for p in folder.glob(pattern)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
