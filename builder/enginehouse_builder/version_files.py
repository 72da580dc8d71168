"""What a version consists of: its files, and the manifest that describes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from enginehouse_server.engine.base import Precision
from enginehouse_server.engine.decoder import AttentionKind, CachePrecision, DecoderPrecision

from .cache import sealed_hashes, versions_of
from .certify import Certified, CertifiedDecoder, ContinuationFile, ReferenceFile
from .export import ExportedClassifier, ExportedDecoder
from .manifest import (
    Bucket,
    ClassifyTask,
    DecoderEngine,
    Engine,
    File,
    GenerateTask,
    Latency,
    Limits,
    Manifest,
    StageTime,
    StepTime,
)
from .publish import Item
from .resolve import Resolved
from .stages import MODEL_FILE, REFERENCE_FILE, Result

__all__ = ["Parts", "ProvenClassifier", "ProvenDecoder", "items_of", "manifest_of"]

_TARGET = "openvino"
_TOOLS = ("enginehouse", "torch", "transformers", "tokenizers", "onnx", "onnxscript", "openvino")


@dataclass(frozen=True, slots=True)
class ProvenClassifier:
    """What was found out about a classifier.

    Attributes:
        task: What the logits mean, and which texts may share a batch.
        precision: Of its engine.
        certified: The engine's certificate and probes.
        buckets: The shapes that batches are padded to.
        latency: Measured times.
    """

    task: ClassifyTask
    precision: Precision
    certified: Certified
    buckets: tuple[Bucket, ...]
    latency: tuple[Latency, ...]


@dataclass(frozen=True, slots=True)
class ProvenDecoder:
    """What was found out about a decoder.

    Attributes:
        task: What serves it.
        precision: Of its engine's weights.
        cache_precision: Of its engine's cache.
        attention: How its engine attends to the cache.
        certified: The engine's certificate and probes.
        step_times: Measured times.
    """

    task: GenerateTask
    precision: DecoderPrecision
    cache_precision: CachePrecision
    attention: AttentionKind
    certified: CertifiedDecoder
    step_times: tuple[StepTime, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that the stages gave.

    Attributes:
        resolved: The original.
        exported: The canonical graph and the tokenizer.
        limits: What the engine takes.
        model: What the engine reads: the canonical graph, or one of its own.
        reference: The original's answers.
        proven: What is particular to the task.
    """

    resolved: Resolved
    exported: Result[ExportedClassifier | ExportedDecoder]
    limits: Limits
    model: Path
    reference: Result[ReferenceFile | ContinuationFile]
    proven: ProvenClassifier | ProvenDecoder

    @property
    def engine_folder(self) -> str:
        """Where the engine's files lie in the version; empty if they are the canonical graph."""
        return "" if self.model.parent == self.exported.folder else f"engines/{_TARGET}/"


def items_of(parts: Parts) -> list[Item]:
    """Every file of the version but the manifest."""
    exported, reference = parts.exported.folder, parts.reference.folder
    items = [
        *_items(exported, f"{MODEL_FILE}*", ""),
        *_items(exported, "tokenizer/**/*", ""),
        *_items(reference, REFERENCE_FILE, ""),
    ]
    if parts.engine_folder:
        items += _items(parts.model.parent, f"{MODEL_FILE}*", parts.engine_folder)
    return items


def _items(folder: Path, pattern: str, prefix: str) -> list[Item]:
    hashes = sealed_hashes(folder)
    return [
        Item(prefix + path.relative_to(folder).as_posix(), path, hashes[path])
        for path in sorted(folder.glob(pattern))
        if path in hashes
    ]


def manifest_of(
    parts: Parts, version: int, files: Mapping[str, File], times: Sequence[StageTime]
) -> Manifest:
    """The manifest of a version that has these files."""
    encoder = parts.proven if isinstance(parts.proven, ProvenClassifier) else None
    decoder = parts.proven if isinstance(parts.proven, ProvenDecoder) else None
    return Manifest(
        model=parts.resolved.name,
        version=version,
        task="generate" if decoder else "classify",
        classify=encoder.task if encoder else None,
        generate=decoder.task if decoder else None,
        source=parts.resolved.source,
        limits=parts.limits,
        inputs=parts.exported.value.inputs,
        outputs=parts.exported.value.outputs,
        buckets=encoder.buckets if encoder else (),
        canonical=_starting(files, MODEL_FILE),
        text=_starting(files, "tokenizer/"),
        reference=files[REFERENCE_FILE],
        engines=(_encoder_of(parts, encoder, files),) if encoder else (),
        decoders=(_decoder_of(parts, decoder, files),) if decoder else (),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        build=tuple(times),
        tools=versions_of(*_TOOLS),
    )


def _encoder_of(parts: Parts, proven: ProvenClassifier, files: Mapping[str, File]) -> Engine:
    model = parts.engine_folder + MODEL_FILE
    return Engine(
        backend="openvino",
        target=_TARGET,
        model=model,
        files=_starting(files, model),
        runtime_version=proven.certified.runtime_version,
        device=proven.certified.device,
        precision=proven.precision,
        certificate=proven.certified.certificate,
        probes=proven.certified.probes,
        latency=proven.latency,
    )


def _decoder_of(parts: Parts, proven: ProvenDecoder, files: Mapping[str, File]) -> DecoderEngine:
    model = parts.engine_folder + MODEL_FILE
    return DecoderEngine(
        backend="openvino",
        target=_TARGET,
        model=model,
        files=_starting(files, model),
        runtime_version=proven.certified.runtime_version,
        device=proven.certified.device,
        precision=proven.precision,
        cache_precision=proven.cache_precision,
        certificate=proven.certified.certificate,
        probes=proven.certified.probes,
        step_times=proven.step_times,
        attention=proven.attention,
    )


def _starting(files: Mapping[str, File], prefix: str) -> tuple[File, ...]:
    return tuple(file for path, file in files.items() if path.startswith(prefix))
