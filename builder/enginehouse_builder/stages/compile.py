"""The stages that make a plan: the graph in its types, the plan, and what stands for it here.

Where a plan does not run, its certificate is that of the same graph on ONNX Runtime, lowered to
TensorRT's operators, which have bodies there, in the same types.
"""

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

from enginehouse_builder.cache import code_digest, key_of, versions_of
from enginehouse_builder.errors import CompileError
from enginehouse_builder.manifest import Plan
from enginehouse_builder.targets import Target
from enginehouse_server.engine.ahead import PlanOrder, compile_graph, lower_graph
from enginehouse_server.engine.base import PlanTraits, Precision
from enginehouse_server.engine.graph import HalfPrecision, to_half, to_rounding
from enginehouse_server.engine.tensorrt import PlanReport
from enginehouse_server.errors import EnginehouseError

from .workplace import (
    LAYERS_FILE,
    MODEL_FILE,
    PLAN_FILE,
    RESULT_CODE,
    SERVER,
    Report,
    Result,
    Workplace,
)

__all__ = [
    "STAND_IN_BACKEND",
    "Compiled",
    "EngineModel",
    "GraphInTypes",
    "StandIn",
    "run_compile",
    "run_stand_in",
    "run_types",
]

STAND_IN_BACKEND = "onnxruntime"

_FEWEST_STEPS = 10  # of a phase whose progress is worth a line
_POLL_S = 0.2  # how soon an interruption is noticed
_GRAPH_CODE = (f"{SERVER}.engine.graph", *RESULT_CODE, __name__)
_PLAN_CODE = (
    f"{SERVER}.engine.tensorrt",
    f"{SERVER}.engine.ahead",
    f"{SERVER}.engine.reduction",
    *_GRAPH_CODE,
)


@dataclass(frozen=True, slots=True)
class GraphInTypes:
    """A graph that an engine computes in its own types.

    Attributes:
        model: The file.
        key: Of the stage that wrote it.
        arithmetic: What it computes in, but for what needs fp32.
    """

    model: Path
    key: str
    arithmetic: Precision


@dataclass(frozen=True, slots=True)
class Written:
    """A graph was written; it lies in the result's folder."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What is known of a plan.

    Attributes:
        version: Of its TensorRT.
        compute_capabilities: Of the GPUs that run it.
        num_bytes: Of the plan.
        activation_bytes: Of a GPU, that a run works in; 0 if the compiler did not say.
        num_attentions: Fused attentions, each proven to be what the graph declares.
        num_caches: Caches that are updated in place.
        notes: What the compiler did otherwise than asked.
    """

    version: str
    compute_capabilities: tuple[str, ...]
    num_bytes: int
    activation_bytes: int
    num_attentions: int
    num_caches: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StandIn:
    """What ONNX Runtime computes on the processor in place of an engine that does not run here.

    Attributes:
        model: A graph that stores what the engine's does.
        words: What it is, said after the runtime's name.
        is_lowered: Whether it is in TensorRT's operators.
    """

    model: Path
    words: str
    is_lowered: bool


@dataclass(frozen=True, slots=True)
class EngineModel:
    """What an engine reads.

    Attributes:
        file: The graph or the plan.
        key: Of what is run here: its own stage, or that of what stands for it.
        plan: What a plan needs; None of a graph.
        stand_in: What is run in its place where it does not run here.
    """

    file: Path
    key: str
    plan: Plan | None = None
    stand_in: StandIn | None = None

    @property
    def here(self) -> Path:
        """What is opened here: the engine's own, or what stands for it."""
        return self.stand_in.model if self.stand_in else self.file

    @property
    def traits(self) -> PlanTraits | None:
        """What has to be known of a plan that is opened here; None where none is."""
        plan = self.plan
        if plan is None or self.stand_in is not None:
            return None
        roles = tuple(profile.role for profile in plan.profiles)
        return PlanTraits(plan.version, plan.compute_capabilities, roles, plan.device_bytes)


def run_types(
    place: Workplace, model: Path, key: str, arithmetic: HalfPrecision, report: Report
) -> Result[Written]:
    """Writes a graph in half precision."""
    full_key = key_of(
        code_digest(_GRAPH_CODE),
        versions_of("onnx", "numpy", "ml_dtypes"),
        graph=key,
        arithmetic=arithmetic,
    )

    def make(folder: Path) -> Written:
        report(f"writing the graph in {arithmetic}")
        try:
            to_half(model, folder / MODEL_FILE, arithmetic)
        except EnginehouseError as error:
            raise CompileError(str(error)) from error
        return Written()

    return place.run("types", full_key, Written, make)


def run_compile(
    place: Workplace, target: Target, graph: GraphInTypes, order: PlanOrder, report: Report
) -> Result[Compiled]:
    """Compiles a plan; interrupted, it leaves nothing."""
    key = key_of(
        code_digest(_PLAN_CODE),
        {target.backend: place.host.versions.get(target.backend, "")},
        graph=graph.key,
        **_settings(order),
    )

    def make(folder: Path) -> Compiled:
        found = _compiled(graph.model, order, folder / PLAN_FILE, _Steps(target.name, report))
        (folder / LAYERS_FILE).write_text(found.layer_info, encoding="utf-8")
        return Compiled(
            version=found.version,
            compute_capabilities=found.compute_capabilities,
            num_bytes=found.num_bytes,
            activation_bytes=found.activation_bytes,
            num_attentions=found.num_attentions,
            num_caches=found.num_caches,
            notes=found.notes,
        )

    return place.run("compile", key, Compiled, make)


def run_stand_in(
    place: Workplace, graph: GraphInTypes, order: PlanOrder, report: Report
) -> Result[Written]:
    """Writes what ONNX Runtime computes in place of a plan: the same graph, up to its logits."""
    key = key_of(
        code_digest(_PLAN_CODE),
        versions_of("onnx", "numpy"),
        graph=graph.key,
        arithmetic=graph.arithmetic,
        **_settings(order),
    )

    def make(folder: Path) -> Written:
        report("lowering the graph for ONNX Runtime")
        try:
            if graph.arithmetic == "bf16":
                with TemporaryDirectory(dir=folder) as scratch:
                    lowered, _ = lower_graph(graph.model, order, Path(scratch), reduces=False)
                    to_rounding(lowered, folder / MODEL_FILE)
                return Written()
            lowered, _ = lower_graph(graph.model, order, folder, reduces=False)
            if lowered.parent == folder:
                lowered.rename(folder / MODEL_FILE)
            else:
                for file in graph.model.parent.glob(f"{MODEL_FILE}*"):
                    (folder / file.name).hardlink_to(file)
        except EnginehouseError as error:
            raise CompileError(str(error)) from error
        return Written()

    return place.run("stand-in", key, Written, make)


def _settings(order: PlanOrder) -> dict[str, object]:
    """What decides a plan beside its graph, for a key."""
    return {
        "flavour": order.flavour,
        "capabilities": list(order.compute_capabilities),
        "precision": order.precision,
        "profiles": [[p.role, *map(list, map(astuple, p.inputs))] for p in order.profiles],
        "layers": [list(layer) for layer in order.layers],
        "max_tokens": order.max_tokens,
        "level": order.optimization_level,
        "workspace": order.workspace_bytes,
    }


class _Steps:
    """Passes the compiler's steps on, as so many per cent of a phase; a few lines at most.

    Of the phases within each other the outermost says how far it is.
    """

    def __init__(self, name: str, report: Report) -> None:
        self._name, self._report = name, report
        self._said = ""
        self.is_ended = Event()

    def __call__(self, phase: str, step: int, num_steps: int) -> bool:
        if num_steps >= _FEWEST_STEPS:
            tenth = 10 * step // num_steps
            text = f"compiling {self._name}: {phase.lower()}, {10 * tenth} %"
            if text != self._said:
                self._said = text
                self._report(text)
        return not self.is_ended.is_set()


def _compiled(model: Path, order: PlanOrder, target: Path, steps: _Steps) -> PlanReport:
    """Compiles on a thread of its own, so that this one can be interrupted meanwhile."""
    with ThreadPoolExecutor(1, "compile") as pool:
        running = pool.submit(compile_graph, model, order, target, steps)
        try:
            while not wait([running], _POLL_S).done:
                pass
        except BaseException:
            steps.is_ended.set()
            raise
    try:
        return running.result()
    except EnginehouseError as error:
        raise CompileError(f"{order.flavour} cannot compile this model: {error}") from error
