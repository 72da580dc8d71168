"""What a version consists of: its files, and the manifest that describes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .buckets import default_buckets
from .cache import sealed_hashes, versions_of
from .certify import Certified, ReferenceFile
from .export import ExportedClassifier
from .manifest import ClassifyTask, Engine, File, Latency, Limits, Manifest, StageTime
from .publish import Item
from .resolve import Resolved
from .stages import MODEL_FILE, REFERENCE_FILE, Graph, Result

__all__ = ["Parts", "items_of", "manifest_of"]

_TARGET = "openvino"
_TOOLS = ("enginehouse", "torch", "transformers", "tokenizers", "onnx", "onnxscript", "openvino")


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that the stages gave.

    Attributes:
        resolved: The original.
        exported: The canonical graph and the tokenizer.
        task: What the logits mean, and which texts may share a batch.
        limits: What the engine takes.
        graph: What the engine reads: the canonical graph, or one of its own.
        reference: The original's answers.
        certified: The engine's certificate and probes.
        latency: Its measured times.
    """

    resolved: Resolved
    exported: Result[ExportedClassifier]
    task: ClassifyTask
    limits: Limits
    graph: Graph
    reference: Result[ReferenceFile]
    certified: Certified
    latency: tuple[Latency, ...]

    @property
    def engine_folder(self) -> str:
        """Where the engine's files lie in the version; empty if they are the canonical graph."""
        return "" if self.graph.key == self.exported.key else f"engines/{_TARGET}/"


def items_of(parts: Parts) -> list[Item]:
    """Every file of the version but the manifest."""
    exported, reference = parts.exported.folder, parts.reference.folder
    own = parts.graph.file.model.parent
    items = [
        *_items(exported, f"{MODEL_FILE}*", ""),
        *_items(exported, "tokenizer/**/*", ""),
        *_items(reference, REFERENCE_FILE, ""),
    ]
    if parts.engine_folder:
        items += _items(own, f"{MODEL_FILE}*", parts.engine_folder)
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
    return Manifest(
        model=parts.resolved.name,
        version=version,
        task="classify",
        classify=parts.task,
        generate=None,
        source=parts.resolved.source,
        limits=parts.limits,
        inputs=parts.exported.value.inputs,
        outputs=parts.exported.value.outputs,
        buckets=default_buckets(parts.limits, parts.task),
        canonical=_starting(files, MODEL_FILE),
        text=_starting(files, "tokenizer/"),
        reference=files[REFERENCE_FILE],
        engines=(_engine_of(parts, files),),
        decoders=(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        build=tuple(times),
        tools=versions_of(*_TOOLS),
    )


def _engine_of(parts: Parts, files: Mapping[str, File]) -> Engine:
    model = parts.engine_folder + MODEL_FILE
    return Engine(
        backend="openvino",
        target=_TARGET,
        precision=parts.graph.file.precision,
        model=model,
        files=_starting(files, model),
        runtime_version=parts.certified.runtime_version,
        device=parts.certified.device,
        certificate=parts.certified.certificate,
        probes=parts.certified.probes,
        latency=parts.latency,
    )


def _starting(files: Mapping[str, File], prefix: str) -> tuple[File, ...]:
    return tuple(file for path, file in files.items() if path.startswith(prefix))
