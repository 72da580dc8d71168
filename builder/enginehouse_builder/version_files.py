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

__all__ = [
    "Parts",
    "ProvenClassifier",
    "ProvenDecoder",
    "ProvenEncoder",
    "ProvenGenerator",
    "items_of",
    "manifest_of",
]

_TOOLS = ("enginehouse", "torch", "transformers", "tokenizers", "onnx", "onnxscript", "openvino")


@dataclass(frozen=True, slots=True)
class ProvenEncoder:
    """An engine of a classifier.

    Attributes:
        backend: What runs it.
        model: What it reads: the canonical graph, or one of its own.
        precision: Its arithmetic, or of its weights where those are narrower.
        certified: Its certificate and probes.
        latency: Measured times.
    """

    backend: str
    model: Path
    precision: Precision
    certified: Certified
    latency: tuple[Latency, ...]


@dataclass(frozen=True, slots=True)
class ProvenClassifier:
    """What was found out about a classifier.

    Attributes:
        task: What the logits mean, and which texts may share a batch.
        buckets: The shapes that batches are padded to.
        engines: Best first.
    """

    task: ClassifyTask
    buckets: tuple[Bucket, ...]
    engines: tuple[ProvenEncoder, ...]


@dataclass(frozen=True, slots=True)
class ProvenDecoder:
    """An engine of a decoder.

    Attributes:
        backend: What runs it.
        model: What it reads: the canonical graph, or one of its own.
        precision: Of its weights.
        cache_precision: Of its cache.
        attention: How it attends to the cache.
        certified: Its certificate and probes.
        step_times: Measured times.
    """

    backend: str
    model: Path
    precision: DecoderPrecision
    cache_precision: CachePrecision
    attention: AttentionKind
    certified: CertifiedDecoder
    step_times: tuple[StepTime, ...]


@dataclass(frozen=True, slots=True)
class ProvenGenerator:
    """What was found out about a decoder: what serves it, and its engines, best first."""

    task: GenerateTask
    engines: tuple[ProvenDecoder, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that the stages gave.

    Attributes:
        resolved: The original.
        exported: The canonical graph and the tokenizer.
        limits: What the engines take.
        reference: The original's answers.
        proven: What is particular to the task.
    """

    resolved: Resolved
    exported: Result[ExportedClassifier | ExportedDecoder]
    limits: Limits
    reference: Result[ReferenceFile | ContinuationFile]
    proven: ProvenClassifier | ProvenGenerator

    @property
    def prefixes(self) -> dict[Path, str]:
        """Where in the version each graph lies, by its folder; engines of one graph share it."""
        found = {self.exported.folder: ""}
        for engine in self.proven.engines:
            found.setdefault(engine.model.parent, f"engines/{engine.backend}/")
        return found


def items_of(parts: Parts) -> list[Item]:
    """Every file of the version but the manifest."""
    exported, reference = parts.exported.folder, parts.reference.folder
    graphs = [
        item
        for folder, prefix in parts.prefixes.items()
        for item in _items(folder, f"{MODEL_FILE}*", prefix)
    ]
    return [
        *graphs,
        *_items(exported, "tokenizer/**/*", ""),
        *_items(reference, REFERENCE_FILE, ""),
    ]


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
    decoder = parts.proven if isinstance(parts.proven, ProvenGenerator) else None
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
        engines=tuple(_encoder(parts, e, files) for e in encoder.engines) if encoder else (),
        decoders=tuple(_decoder(parts, d, files) for d in decoder.engines) if decoder else (),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        build=tuple(times),
        tools=versions_of(*_TOOLS) | _runtimes(parts),
    )


def _runtimes(parts: Parts) -> dict[str, str]:
    return {e.backend: e.certified.runtime_version for e in parts.proven.engines}


def _encoder(parts: Parts, proven: ProvenEncoder, files: Mapping[str, File]) -> Engine:
    model = parts.prefixes[proven.model.parent] + MODEL_FILE
    return Engine(
        backend=proven.backend,
        target=proven.backend,
        model=model,
        files=_starting(files, model),
        runtime_version=proven.certified.runtime_version,
        device=proven.certified.device,
        precision=proven.precision,
        certificate=proven.certified.certificate,
        probes=proven.certified.probes,
        latency=proven.latency,
    )


def _decoder(parts: Parts, proven: ProvenDecoder, files: Mapping[str, File]) -> DecoderEngine:
    model = parts.prefixes[proven.model.parent] + MODEL_FILE
    return DecoderEngine(
        backend=proven.backend,
        target=proven.backend,
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
