"""What a version consists of: its files, and the manifest that describes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from enginehouse_server.engine.base import Precision
from enginehouse_server.engine.decoder import AttentionKind, CachePrecision
from enginehouse_server.engine.runtimes import least_driver

from .cache import sealed_hashes, versions_of
from .certify import Certified, CertifiedDecoder
from .host import BACKENDS
from .manifest import (
    Bucket,
    BuiltEngine,
    ClassifyTask,
    DecoderEngine,
    Engine,
    File,
    GenerateTask,
    Latency,
    Limits,
    Manifest,
    Plan,
    Source,
    StageTime,
    StepTime,
    Tensor,
)
from .publish import Item
from .sources import content_key
from .stages import MODEL_FILE, REFERENCE_FILE
from .targets import Target

__all__ = [
    "Kept",
    "Origin",
    "Parts",
    "ProvenClassifier",
    "ProvenDecoder",
    "ProvenEncoder",
    "ProvenGenerator",
    "graph_key",
    "items_of",
    "manifest_of",
    "original_items",
]

B = TypeVar("B", bound=BuiltEngine)

_MODEL = "model."  # begins the name of every file that a runtime reads
_TOOLS = ("enginehouse", "torch", "transformers", "tokenizers", "onnx", "onnxscript", "openvino")


@dataclass(frozen=True, slots=True)
class ProvenEncoder:
    """An engine of a classifier.

    Attributes:
        target: What it is for.
        model: What it reads: the canonical graph, one of its own, or a plan.
        plan: What a plan needs; None of what is none.
        precision: Its arithmetic, or of its weights where those are narrower.
        certified: Its certificate and probes.
        latency: Measured times; none of what did not run here.
    """

    target: Target
    model: Path
    plan: Plan | None
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
        target: What it is for.
        model: What it reads: the canonical graph, one of its own, or a plan.
        plan: What a plan needs; None of what is none.
        precision: Of its weights.
        cache_precision: Of its cache.
        attention: How it attends to the cache.
        certified: Its certificate and probes.
        step_times: Measured times; none of what did not run here.
    """

    target: Target
    model: Path
    plan: Plan | None
    precision: Precision
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
class Origin:
    """What every engine comes from, and its files.

    Attributes:
        source: The original.
        inputs: Of the canonical graph.
        outputs: Of the canonical graph.
        folder: Where the canonical graph lies.
        items: The canonical graph, the tokenizer and the original's answers.
    """

    source: Source
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    folder: Path
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """Engines of an earlier version that a later one takes over.

    Attributes:
        built: As the earlier manifest has them, paths too.
        items: Their own files.
        tools: Versions that they were built with.
    """

    built: tuple[Engine | DecoderEngine, ...] = ()
    items: tuple[Item, ...] = ()
    tools: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that a version is made of.

    Attributes:
        model: Name as served.
        origin: What every engine comes from.
        limits: What the engines take.
        proven: What is particular to the task.
        kept: Engines that are taken over.
    """

    model: str
    origin: Origin
    limits: Limits
    proven: ProvenClassifier | ProvenGenerator
    kept: Kept = Kept()

    @property
    def prefixes(self) -> dict[Path, str]:
        """Where in the version each graph lies, by its folder; engines of one graph share it."""
        taken = {item.path.rpartition("/")[0] + "/" for item in self.kept.items}
        found = {self.origin.folder: ""}
        for engine in self.proven.engines:
            folder = f"engines/{engine.target.folder}"
            if f"{folder}/" in taken:  # by what another engine still reads
                folder += f"-{engine.precision}"
            found.setdefault(engine.model.parent, f"{folder}/")
        return found


def items_of(parts: Parts) -> list[Item]:
    """Every file of the version but the manifest."""
    own = [
        item
        for folder, prefix in parts.prefixes.items()
        if prefix
        for item in _items(folder, f"{_MODEL}*", prefix)
    ]
    return [*own, *parts.origin.items, *parts.kept.items]


def graph_key(folder: Path) -> str:
    """Names the canonical graph of a folder by its content."""
    hashes = sealed_hashes(folder)
    return content_key({p.name: hashes[p] for p in sorted(folder.glob(f"{MODEL_FILE}*"))})


def original_items(exported: Path, reference: Path) -> tuple[Item, ...]:
    """The files that every engine has in common, from the stages that wrote them."""
    return (
        *_items(exported, f"{_MODEL}*", ""),
        *_items(exported, "tokenizer/**/*", ""),
        *_items(reference, REFERENCE_FILE, ""),
    )


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
    kept = parts.kept.built
    encoders = [_encoder(parts, e, files) for e in encoder.engines] if encoder else []
    decoders = [_decoder(parts, d, files) for d in decoder.engines] if decoder else []
    return Manifest(
        model=parts.model,
        version=version,
        task="generate" if decoder else "classify",
        classify=encoder.task if encoder else None,
        generate=decoder.task if decoder else None,
        source=parts.origin.source,
        limits=parts.limits,
        inputs=parts.origin.inputs,
        outputs=parts.origin.outputs,
        buckets=encoder.buckets if encoder else (),
        canonical=_starting(files, MODEL_FILE),
        text=_starting(files, "tokenizer/"),
        reference=files[REFERENCE_FILE],
        engines=_ordered([*encoders, *(e for e in kept if isinstance(e, Engine))]),
        decoders=_ordered([*decoders, *(e for e in kept if isinstance(e, DecoderEngine))]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        build=tuple(times),
        tools=_tools(parts),
    )


def _ordered(engines: Sequence[B]) -> tuple[B, ...]:
    return tuple(sorted(engines, key=lambda engine: BACKENDS.index(engine.backend)))


def _tools(parts: Parts) -> dict[str, str]:
    runtimes = {
        e.target.backend: e.plan.version if e.plan else e.certified.runtime_version
        for e in parts.proven.engines
    }
    earlier = parts.kept.tools
    if earlier is None:
        return versions_of(*_TOOLS) | runtimes
    return {**earlier, **versions_of("enginehouse", "onnx"), **runtimes}


def _encoder(parts: Parts, proven: ProvenEncoder, files: Mapping[str, File]) -> Engine:
    prefix = parts.prefixes[proven.model.parent]
    return Engine(
        backend=proven.target.backend,
        target=proven.target.name,
        model=prefix + proven.model.name,
        files=_starting(files, prefix + _MODEL),
        runtime_version=proven.certified.runtime_version,
        device=proven.certified.device,
        precision=proven.precision,
        certificate=proven.certified.certificate,
        probes=proven.certified.probes,
        latency=proven.latency,
        plan=proven.plan,
        min_driver=_min_driver(proven.plan),
    )


def _decoder(parts: Parts, proven: ProvenDecoder, files: Mapping[str, File]) -> DecoderEngine:
    prefix = parts.prefixes[proven.model.parent]
    return DecoderEngine(
        backend=proven.target.backend,
        target=proven.target.name,
        model=prefix + proven.model.name,
        files=_starting(files, prefix + _MODEL),
        runtime_version=proven.certified.runtime_version,
        device=proven.certified.device,
        precision=proven.precision,
        cache_precision=proven.cache_precision,
        certificate=proven.certified.certificate,
        probes=proven.certified.probes,
        step_times=proven.step_times,
        attention=proven.attention,
        plan=proven.plan,
        min_driver=_min_driver(proven.plan),
    )


def _min_driver(plan: Plan | None) -> str:
    """What runs a plan is of the version that compiled it here, and so for the same CUDA."""
    return least_driver(plan.flavour) if plan else ""


def _starting(files: Mapping[str, File], prefix: str) -> tuple[File, ...]:
    return tuple(file for path, file in files.items() if path.startswith(prefix))
