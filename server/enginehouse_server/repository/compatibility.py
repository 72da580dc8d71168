"""Whether an engine can run on a machine, found from what is said of both: nothing is loaded.

The one place that knows what decides it, what to do where it cannot, and which engine is the
better. An engine that can run is still proven when it is loaded.
"""

from collections.abc import Iterator, Sequence

from enginehouse_server.engine.gpus import PLAN_CAPABILITIES
from enginehouse_server.engine.machine import Machine

from .differences import GRAPH_DIFFERENCES, PLAN_DIFFERENCES, Case, knows, numbers_of
from .verdict import AnyEngine, Rebuild, Verdict

__all__ = ["judge", "missing_target", "rank"]

_ORDER = ("tensorrt", "tensorrt-rtx", "onnxruntime on a GPU", "openvino", "onnxruntime")


def judge(engine: AnyEngine, machine: Machine, rebuild: Rebuild) -> Verdict:
    """Whether an engine runs on a machine, and if not, what to do.

    Args:
        engine: As the manifest has it.
        machine: Where it would run.
        rebuild: Makes another engine of the same model.
    """
    case = Case(engine, machine, rebuild)
    for difference in GRAPH_DIFFERENCES if engine.plan is None else PLAN_DIFFERENCES:
        found = difference(case)
        if found is not None:
            return found
    return Verdict(runs=True, notes=tuple(_notes(engine, machine)))


def rank(engine: AnyEngine, machine: Machine) -> int:
    """Which of several engines that run is the better one: the lower number."""
    is_on_gpu = engine.backend == "onnxruntime" and machine.has_cuda_provider
    backend = "onnxruntime on a GPU" if is_on_gpu else engine.backend
    return _ORDER.index(backend) if backend in _ORDER else len(_ORDER)


def missing_target(able: Sequence[AnyEngine], machine: Machine, precision: str) -> str:
    """What to build so that a machine's GPU is used best; empty if nothing would be better.

    Args:
        able: Engines that run there.
        machine: A machine; only runtimes that it can use already are thought of.
        precision: Of what to build.
    """
    gpu = machine.gpu
    if gpu is None:
        return ""
    flavour = next(
        (f for f in PLAN_CAPABILITIES if knows(f, gpu) and machine.runtime(f).is_usable), None
    )
    if flavour is None or any(engine.backend == flavour for engine in able):
        return ""
    return f"{flavour}:{gpu.compute_capability}={precision}"


def _notes(engine: AnyEngine, machine: Machine) -> Iterator[str]:
    runtime = machine.runtime(engine.backend)
    if engine.plan is None and numbers_of(runtime.version) < numbers_of(engine.runtime_version):
        yield (
            f"certified with {engine.backend} {engine.runtime_version}, here is the older "
            f"{runtime.version}: its probes decide when it is loaded"
        )
    if engine.plan is not None and engine.plan.certified == "lowered":
        yield "its answers were proven on another runtime: its first load here certifies it"
