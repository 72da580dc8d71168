"""What all stages have in common: where their results lie, and what makes one the same again.

A stage works in a folder of its own, from what earlier ones left in theirs, and its result lies
there as JSON beside the files. Those that have to do with an engine depend on the device too. Knows
nothing of the original model, so that engines can be made where it is not.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from enginehouse_builder.cache import Cache
from enginehouse_builder.host import Host
from enginehouse_builder.manifest import Plan, from_json, to_json
from enginehouse_builder.memory import give_back_memory
from enginehouse_builder.targets import Target
from enginehouse_server.engine.device import Device

__all__ = [
    "BUILDER",
    "LAYERS_FILE",
    "MODEL_FILE",
    "PLAN_FILE",
    "REFERENCE_FILE",
    "RESULT_CODE",
    "SERVER",
    "CompileSettings",
    "Report",
    "Result",
    "Workplace",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Report = Callable[[str], None]

MODEL_FILE = "model.onnx"
PLAN_FILE = "model.plan"
LAYERS_FILE = "model.layers.json"  # what the network of a plan is made of
REFERENCE_FILE = "reference.json"
BUILDER, SERVER = "enginehouse_builder", "enginehouse_server"
RESULT_CODE = (f"{BUILDER}.manifest", __name__)  # what every result depends on

_PROVING = ("openvino", "onnxruntime")
_RESULT_FILE = "result.json"


@dataclass(frozen=True, slots=True)
class CompileSettings:
    """How plans are compiled.

    Attributes:
        optimization_level: 0 to 5: how long TensorRT looks for faster kernels.
        workspace_bytes: Most memory of the GPU that a kernel may use beside its tensors; None is
            all of it.
    """

    optimization_level: int = 3
    workspace_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Workplace:
    """What every stage may use.

    Attributes:
        cache: Keeps results.
        host: This machine.
        targets: What engines are made for, better ones first.
        devices: What runs engines here, by backend; of plans, where they can run at all.
        num_threads: Processor threads.
        compiling: How plans are compiled.
    """

    cache: Cache
    host: Host
    targets: tuple[Target, ...]
    devices: Mapping[str, Device]
    num_threads: int
    compiling: CompileSettings

    @property
    def proving_backend(self) -> str:
        """What runs the canonical graph in fp32 here, where that has to be tried."""
        return next((b for b in _PROVING if b in self.devices), _PROVING[0])

    def runs(self, plan: Plan) -> bool:
        """Whether a plan can be run here, and not only be compiled."""
        return plan.flavour in self.devices and self.host.capability in plan.compute_capabilities

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
