"""What the stages have in common: where their results lie, and what makes one the same again.

A stage works in a folder of its own, from what earlier ones left in theirs, and its result lies
there as JSON beside the files. Those that have to do with an engine depend on the device too.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from enginehouse_builder.cache import Cache
from enginehouse_builder.manifest import from_json, to_json
from enginehouse_builder.memory import give_back_memory
from enginehouse_builder.resolve import Resolved
from enginehouse_builder.samples import Samples
from enginehouse_builder.spec import BuildSpec
from enginehouse_server.engine.device import Device

__all__ = [
    "BUILDER",
    "MODEL_FILE",
    "ORIGINAL_TOOLS",
    "REFERENCE_FILE",
    "RESULT_CODE",
    "SERVER",
    "Context",
    "Report",
    "Result",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Report = Callable[[str], None]

MODEL_FILE = "model.onnx"
REFERENCE_FILE = "reference.json"
BUILDER, SERVER = "enginehouse_builder", "enginehouse_server"
RESULT_CODE = (f"{BUILDER}.manifest", __name__)  # what every result depends on
ORIGINAL_TOOLS = ("torch", "transformers", "tokenizers")

_RESULT_FILE = "result.json"
_DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")  # of the original, but weights


@dataclass(frozen=True, slots=True)
class Context:
    """What every stage may use.

    Attributes:
        spec: What is asked for.
        cache: Keeps results.
        resolved: The original.
        samples: Texts to calibrate and certify on.
        devices: What runs the engines, by backend.
        num_threads: Processor threads.
    """

    spec: BuildSpec
    cache: Cache
    resolved: Resolved
    samples: Samples
    devices: Mapping[str, Device]
    num_threads: int

    def run(self, stage: str, key: str, kind: type[T], make: Callable[[Path], T]) -> "Result[T]":
        """The stage's result, from the cache or made."""

        def fill(folder: Path) -> None:
            document = to_json(make(folder))
            (folder / _RESULT_FILE).write_text(json.dumps(document), encoding="utf-8")

        cached = self.cache.stage(stage, key, fill)
        give_back_memory()
        document = json.loads((cached.folder / _RESULT_FILE).read_text(encoding="utf-8"))
        return Result(from_json(kind, document, stage), cached.folder, key, cached.seconds)

    def runtime_of(self, backend: str) -> dict[str, str]:
        """A backend's version, by name, for a key."""
        return {backend: self.devices[backend].runtime_version}

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


def _descriptions_sha256(folder: Path) -> str:
    """Of the files beside the weights, in folders too: labels, texts and code may change alone."""
    digest = hashlib.sha256()
    found = {
        p.relative_to(folder) for kind in _DESCRIPTIONS for p in folder.rglob(kind) if p.is_file()
    }
    for path in sorted(p for p in found if not p.parts[0].startswith(".")):
        digest.update(path.as_posix().encode() + b"\0" + (folder / path).read_bytes() + b"\0")
    return digest.hexdigest()
