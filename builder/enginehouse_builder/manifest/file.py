"""A manifest as a file: written once, validated whenever it is read."""

import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path

from .built import BuiltEngine
from .records import Manifest
from .typed_json import MismatchError, from_json, to_json

__all__ = [
    "FILE_NAME",
    "MANIFEST_VERSION",
    "NAME_PATTERN",
    "ManifestError",
    "read_manifest",
    "sha256_of",
    "write_manifest",
]

FILE_NAME = "manifest.json"
MANIFEST_VERSION = 1
_PLAN_BACKENDS = ("tensorrt", "tensorrt-rtx")
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class ManifestError(Exception):
    """A manifest that cannot be read, or says what cannot be."""


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
    faults += _task_faults(manifest)
    listed = [f for e in manifest.built for f in e.files]
    listed += [*manifest.canonical, *manifest.text, manifest.reference]
    faults += [f"file {f.path!r} leaves the folder" for f in listed if _leaves(f.path)]
    if not any(f.path.endswith("/tokenizer.json") for f in manifest.text):
        faults.append("there is no tokenizer.json among the text files")
    unproven = [e.target for e in manifest.engines if not e.probes]
    unproven += [e.target for e in manifest.decoders if not e.probes]
    faults += [f"engine {t} has no probes: nothing proves its answers" for t in unproven]
    for engine in manifest.built:
        if engine.model not in {f.path for f in engine.files}:
            faults.append(f"engine {engine.target}: {engine.model!r} is not among its files")
        faults += _plan_faults(engine)
    if faults:
        raise ManifestError(f"{path}: " + "; ".join(faults))


def _task_faults(manifest: Manifest) -> list[str]:
    faults = []
    if getattr(manifest, manifest.task) is None:
        faults.append(f"task is {manifest.task} but the field {manifest.task} is null")
    field = "engines" if manifest.task == "classify" else "decoders"
    if not getattr(manifest, field):
        faults.append(f"there are no {field}")
    if manifest.task == "classify" and not manifest.buckets:
        faults.append("there are no buckets")
    return faults


def _plan_faults(engine: BuiltEngine) -> list[str]:
    """A backend that reads plans must say of its plan what it runs on, another has none."""
    flavour = engine.plan.flavour if engine.plan else None
    needed = engine.backend if engine.backend in _PLAN_BACKENDS else None
    if flavour != needed:
        return [f"engine {engine.target}: backend {engine.backend} with a plan of {flavour}"]
    if engine.plan and not (engine.plan.compute_capabilities and engine.plan.profiles):
        return [f"engine {engine.target}: its plan has no compute capabilities or no profiles"]
    return []


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _leaves(path: str) -> bool:
    return path.startswith("/") or ".." in path.split("/") or "\\" in path
