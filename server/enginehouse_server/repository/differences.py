"""What can keep an engine from running on a machine, one function for each, in the order to ask.

Each compares what the manifest wants with what the machine has, and knows the remedy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from enginehouse_builder.manifest import Plan
from enginehouse_server.engine.gpus import PLAN_CAPABILITIES, Gpu
from enginehouse_server.engine.machine import Machine
from enginehouse_server.engine.runtimes import Runtime

from .verdict import AnyEngine, Rebuild, Verdict

__all__ = ["GRAPH_DIFFERENCES", "PLAN_DIFFERENCES", "Case", "knows", "numbers_of"]

_EXTRAS = {
    "openvino": "server",
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
_PACKAGES = {"tensorrt": ("tensorrt",)} | {
    "tensorrt-rtx": ("tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs")
}
_ANY = "any"  # a plan for every GPU that its flavour knows
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Case:
    """An engine on a machine, and the command that makes another of the same model."""

    engine: AnyEngine
    machine: Machine
    rebuild: Rebuild

    @property
    def runtime(self) -> Runtime:
        """What the machine has of the engine's runtime."""
        return self.machine.runtime(self.engine.backend)

    @property
    def plan(self) -> Plan:
        """The engine's plan, of one that has a plan."""
        assert self.engine.plan is not None
        return self.engine.plan

    @property
    def gpu(self) -> Gpu:
        """The machine's GPU, once it is known to have one."""
        assert self.machine.gpu is not None
        return self.machine.gpu

    def other(self, target: str, precision: str = "") -> str:
        """The command that makes an engine for this machine."""
        return self.rebuild.to(f"{target}={precision or self.engine.precision}")

    def on_processor(self) -> str:
        """The command that makes an engine for this machine's processor."""
        usable = [b for b in ("openvino", "onnxruntime") if self.machine.runtime(b).is_usable]
        is_for_any = self.engine.precision in ("fp32", "int8", "int4")
        return self.other((usable or ["openvino"])[0], "" if is_for_any else "fp32")

    def plan_here(self) -> str:
        """The command that makes a plan for this machine's GPU, by the flavour that it can have."""
        flavours = sorted(
            (f for f in PLAN_CAPABILITIES if knows(f, self.gpu)),
            key=lambda f: (not self.machine.runtime(f).is_usable, f != self.plan.flavour),
        )
        if not flavours:
            return self.other("onnxruntime")
        return self.other(f"{flavours[0]}:{self.gpu.compute_capability}")


_Difference = Callable[[Case], Verdict | None]


def _differs(field: str, wanted: str, found: str, remedy: str) -> Verdict:
    return Verdict(False, field, wanted, found, remedy)


def _no_gpu(case: Case) -> Verdict | None:
    if case.machine.gpu is not None:
        return None
    return _differs(
        "GPU",
        f"an NVIDIA GPU of {' or '.join(case.plan.compute_capabilities)}",
        f"none: {case.machine.gpu_obstacle or 'nobody says why'}",
        f"serve it on such a machine, or build for this processor: {case.on_processor()}",
    )


def _other_capability(case: Case) -> Verdict | None:
    capabilities = case.plan.compute_capabilities
    if _fits(case.plan, case.gpu):
        return None
    known = ", ".join(PLAN_CAPABILITIES[case.plan.flavour])
    wanted = known if _ANY in capabilities else " or ".join(capabilities)
    fitting = next((gpu for gpu in case.machine.gpus if _fits(case.plan, gpu)), None)
    if fitting is not None:
        remedy = (
            f"start the server on the {fitting.name}: CUDA_DEVICE_ORDER=PCI_BUS_ID "
            f"CUDA_VISIBLE_DEVICES={fitting.index} enginehouse serve …"
        )
    else:
        remedy = f"{case.plan_here()}, or serve it where there is such a GPU"
    return _differs("compute capability", wanted, _shown(case.gpu), remedy)


def _other_flavour(case: Case) -> Verdict | None:
    """The plan's own flavour of TensorRT is not there, but the other is."""
    wanted = case.plan.flavour
    other = next(f for f in PLAN_CAPABILITIES if f != wanted)
    runtime = case.machine.runtime(other)
    if case.runtime.version or not runtime.is_usable:
        return None
    return _differs(
        "TensorRT flavour",
        f"{wanted} {case.plan.version}",
        f"{other} {runtime.version}",
        f"{_install_exactly(case.plan)}, or {case.plan_here()}",
    )


def _not_installed(case: Case) -> Verdict | None:
    backend = case.engine.backend
    extra = _EXTRAS.get(backend)
    if extra is None:
        known = ", ".join(_EXTRAS)
        return _differs("backend", backend, f"none of that name, but {known}", "update this server")
    if backend == "onnxruntime" and case.machine.gpus:
        extra = "cuda"
    wanted = f"{backend} {case.engine.runtime_version}"
    if not case.runtime.version:
        return _differs("runtime", wanted, "not installed", f"pip install 'enginehouse[{extra}]'")
    if not case.runtime.is_usable:
        return _differs(
            "runtime",
            wanted,
            f"{backend} {case.runtime.version} that cannot be used: {case.runtime.fault}",
            _mended(backend, extra),
        )
    return None


def _other_version(case: Case) -> Verdict | None:
    if case.plan.version == case.runtime.version:
        return None
    return _differs(
        "TensorRT version",
        f"{case.plan.flavour} {case.plan.version}",
        case.runtime.version,
        f"{case.plan_here()}, or {_install_exactly(case.plan)}",
    )


def _old_driver(case: Case) -> Verdict | None:
    needed, found = case.engine.min_driver, case.machine.driver
    if not needed or not found or numbers_of(found) >= numbers_of(needed):
        return None
    return _differs(
        "driver",
        f"{needed} or later",
        found,
        f"install an NVIDIA driver of {needed} or later (a container has its host's), or build for "
        f"this processor: {case.on_processor()}",
    )


def _small_gpu(case: Case) -> Verdict | None:
    needed, found = case.plan.device_bytes, case.gpu.memory_bytes
    if not found or needed <= found:
        return None
    return _differs(
        "GPU memory",
        f"{needed / _GIB:.2f} GiB for weights, activations and one slot or batch",
        f"{found / _GIB:.2f} GiB ({case.gpu.name})",
        "serve it on a larger GPU, or build it in a narrower precision or with lower limits",
    )


def _no_binding(case: Case) -> Verdict | None:
    bindings = ("cuda-core", "pycuda")
    if any(case.machine.runtime(name).is_usable for name in bindings):
        return None
    extra = _EXTRAS[case.plan.flavour]
    return _differs(
        "CUDA binding", " or ".join(bindings), "neither", f"pip install 'enginehouse[{extra}]'"
    )


def _no_arithmetic(case: Case) -> Verdict | None:
    engine, machine = case.engine, case.machine
    if engine.backend == "onnxruntime" and machine.has_cuda_provider:
        return None
    lacking = {"fp16"} if case.runtime.has_bf16 else {"fp16", "bf16"}
    found = lacking & {engine.precision, getattr(engine, "cache_precision", "")}
    if not found:
        return None
    return _differs(
        "precision",
        f"{engine.backend} computing in {' and '.join(sorted(found))}",
        f"{machine.processor}, on which it does not",
        case.other(engine.backend, "fp32"),
    )


def _little_memory(case: Case) -> Verdict | None:
    needed, found = sum(file.size_bytes for file in case.engine.files), case.machine.memory_bytes
    if not found or needed <= found:
        return None
    return _differs(
        "memory",
        f"{needed / _GIB:.2f} GiB for the weights alone",
        f"{found / _GIB:.2f} GiB",
        "serve it where there is more, or build it in a narrower precision",
    )


PLAN_DIFFERENCES: Sequence[_Difference] = (
    _no_gpu,
    _other_capability,
    _other_flavour,
    _not_installed,
    _other_version,
    _old_driver,
    _small_gpu,
    _no_binding,
)
GRAPH_DIFFERENCES: Sequence[_Difference] = (_not_installed, _no_arithmetic, _little_memory)


def knows(flavour: str, gpu: Gpu) -> bool:
    """Whether a flavour of TensorRT has plans for a GPU."""
    return gpu.compute_capability in PLAN_CAPABILITIES[flavour]


def _fits(plan: Plan, gpu: Gpu) -> bool:
    named = gpu.compute_capability in plan.compute_capabilities
    return knows(plan.flavour, gpu) and (named or _ANY in plan.compute_capabilities)


def _shown(gpu: Gpu) -> str:
    return f"{gpu.compute_capability} ({gpu.name})"


def _install_exactly(plan: Plan) -> str:
    packages = " ".join(f"'{name}=={plan.version}'" for name in _PACKAGES[plan.flavour])
    return f"pip install {packages}"


def _mended(backend: str, extra: str) -> str:
    if backend == "onnxruntime":
        both = "pip uninstall --yes onnxruntime onnxruntime-gpu"
        return f"{both} && pip install 'enginehouse[{extra}]'"
    return f"pip install --force-reinstall 'enginehouse[{extra}]'"


def numbers_of(version: str) -> tuple[int, ...]:
    """A version as numbers, up to what is none, so that two can be compared."""
    found = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)
