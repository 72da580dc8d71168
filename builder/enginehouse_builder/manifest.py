"""What a published version of a model is: the builder writes it, the server trusts it.

It is the last file written into a version's folder, so its presence publishes the version. It
needs the standard library alone.
"""

import hashlib
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from .typed_json import MismatchError, from_json, to_json

__all__ = [
    "FILE_NAME",
    "MANIFEST_VERSION",
    "NAME_PATTERN",
    "Bucket",
    "Certificate",
    "ClassifyTask",
    "Engine",
    "File",
    "Latency",
    "Limits",
    "Manifest",
    "ManifestError",
    "Probe",
    "Source",
    "StageTime",
    "Tensor",
    "read_manifest",
    "sha256_of",
    "write_manifest",
]

FILE_NAME = "manifest.json"
MANIFEST_VERSION = 1
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class ManifestError(Exception):
    """A manifest that cannot be read, or says what cannot be."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the original model came from.

    Attributes:
        id: Hub id, or the folder's name.
        revision: Commit on the hub, or empty for a folder.
        sha256: Of the original weight files, in hexadecimal.
        architecture: Class of the model in transformers.
    """

    id: str
    revision: str
    sha256: str
    architecture: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine takes; settings at serve time can only lower it.

    Attributes:
        max_tokens: Longest row, special tokens included.
        max_batch: Most rows in one batch.
        max_batch_tokens: Most rows * padded length in one batch.
    """

    max_tokens: int
    max_batch: int
    max_batch_tokens: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of the graph; a dimension is a number or the name of a dynamic one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class ClassifyTask:
    """What a classifier's logits mean.

    Attributes:
        labels: Names by index.
        problem: Decides how logits become scores: softmax, sigmoid, or as they are.
        accepts_pairs: Whether two texts can be judged together.
        padding: "invariant" if a text gets the same logits alone and padded in a batch;
            "equal_length" if only texts of one length may share a batch.
        pad_id: Token that fills a row up.
    """

    labels: tuple[str, ...]
    problem: Literal["single_label", "multi_label", "regression"]
    accepts_pairs: bool
    padding: Literal["invariant", "equal_length"]
    pad_id: int


@dataclass(frozen=True, slots=True)
class File:
    """A file of the version's folder.

    Attributes:
        path: Relative to the folder, with forward slashes.
        sha256: In hexadecimal.
        size_bytes: Its length.
    """

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far the engine's logits are from the original's, on the same texts.

    Attributes:
        reference: What the engine was compared with, for example "transformers 5.23.0 fp32".
        runtime: What ran the engine, for example "openvino 2026.4.1".
        samples_sha256: Of the sample texts, so that two certificates can be compared.
        num_samples: How many texts.
        max_abs_error: Greatest absolute difference of a logit.
        mean_abs_error: Mean absolute difference of the logits.
        min_cosine: Least cosine similarity of two logit vectors.
        top1_agreement: Share of texts with the same best label (multi-label: share of equal
            decisions; regression: None).
        scale: Largest absolute logit of the reference.
        tolerance: The bound on max_abs_error / scale that the build demanded.
    """

    reference: str
    runtime: str
    samples_sha256: str
    num_samples: int
    max_abs_error: float
    mean_abs_error: float
    min_cosine: float
    top1_agreement: float | None
    scale: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class Probe:
    """An input with the logits that the certified engine gave: asked again at every load."""

    text: str
    text_pair: str | None
    logits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A padded length and the batch sizes that it runs in."""

    length: int
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Latency:
    """Median time of one batch of that shape, where it was measured."""

    batch: int
    length: int
    median_ms: float


@dataclass(frozen=True, slots=True)
class Engine:
    """One compiled form of the model.

    Attributes:
        backend: Which runtime loads it: "openvino".
        target: What it was built for, as on the command line.
        precision: "fp32", "bf16" or "int8".
        model: Path of the file that the runtime is given, one of `files`.
        files: Everything that the runtime reads.
        runtime_version: Of the runtime that certified it.
        device: What it was certified and measured on.
        certificate: Its accuracy.
        probes: Inputs with their certified outputs.
        latency: Measured time by shape.
    """

    backend: str
    target: str
    precision: Literal["fp32", "bf16", "int8"]
    model: str
    files: tuple[File, ...]
    runtime_version: str
    device: str
    certificate: Certificate
    probes: tuple[Probe, ...]
    latency: tuple[Latency, ...]


@dataclass(frozen=True, slots=True)
class StageTime:
    """How long a stage of the build took; 0 where a cached result was used."""

    stage: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """One published version of a model.

    Attributes:
        model: Name as served.
        version: Positive.
        task: "classify".
        classify: What a classifier needs, None for other tasks.
        source: Where the original came from.
        limits: What the engines take.
        inputs: Tensors of the graph, named as the tokenizer names them.
        outputs: Tensors of the graph.
        buckets: The shapes that batches are padded to, ascending.
        canonical: The canonical graph and its weights.
        text: Tokenizer and configuration files.
        reference: File with the sample inputs and the reference's own logits, so that a machine
            without transformers can certify an engine again.
        engines: Best first.
        created: UTC, ISO 8601.
        build: Seconds by stage.
        tools: Version by package.
    """

    model: str
    version: int
    task: Literal["classify"]
    classify: ClassifyTask | None
    source: Source
    limits: Limits
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    buckets: tuple[Bucket, ...]
    canonical: tuple[File, ...]
    text: tuple[File, ...]
    reference: File
    engines: tuple[Engine, ...]
    created: str
    build: tuple[StageTime, ...]
    tools: dict[str, str]


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes the manifest into a version's folder, which must hold all other files already."""
    document: dict[str, object] = {"manifest_version": MANIFEST_VERSION}
    document |= {f.name: to_json(getattr(manifest, f.name)) for f in fields(manifest)}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Reads and validates the manifest of a version's folder. Files are not opened or hashed.

    Raises:
        ManifestError: It is missing, is not JSON, is of another manifest version, or a field is
            missing, unknown or of the wrong type.
    """
    path = folder / FILE_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ManifestError(
            f"{folder} is not a published version: {FILE_NAME} is missing"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ManifestError(f"{path} holds {type(document).__name__}, not an object")
    found = document.pop("manifest_version", None)
    if found != MANIFEST_VERSION:
        raise ManifestError(
            f"{path} has manifest version {found}; this release reads {MANIFEST_VERSION}: "
            "build the model again with this release"
        )
    try:
        manifest = from_json(Manifest, document, "manifest")
    except MismatchError as error:
        raise ManifestError(f"{path}: {error}") from None
    _validate(manifest, path)
    return manifest


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _validate(manifest: Manifest, path: Path) -> None:
    faults = []
    if not NAME_PATTERN.fullmatch(manifest.model):
        faults.append(f"model name {manifest.model!r} does not match {NAME_PATTERN.pattern}")
    if manifest.version < 1:
        faults.append(f"version {manifest.version} is not positive")
    if manifest.classify is None:
        faults.append("task is classify but the field classify is null")
    if not manifest.engines:
        faults.append("there is no engine")
    if not manifest.buckets:
        faults.append("there are no buckets")
    listed = [f for e in manifest.engines for f in e.files]
    listed += [*manifest.canonical, *manifest.text, manifest.reference]
    faults += [f"file {f.path!r} leaves the folder" for f in listed if _leaves(f.path)]
    for engine in manifest.engines:
        if engine.model not in {f.path for f in engine.files}:
            faults.append(f"engine {engine.target}: {engine.model!r} is not among its files")
    if faults:
        raise ManifestError(f"{path}: " + "; ".join(faults))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _leaves(path: str) -> bool:
    return path.startswith("/") or ".." in path.split("/") or "\\" in path
