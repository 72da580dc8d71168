"""Compiles a lowered graph into a plan: ahead of time, and with TensorRT for RTX without a GPU."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from enginehouse_server.engine.gpus import PLAN_CAPABILITIES
from enginehouse_server.engine.whole_file import replace_file
from enginehouse_server.errors import UnsupportedError

from .flavour import Handle, load_flavour
from .logger import Complaints
from .network import float_product, layer_info, parse, prove
from .plan import PlanReport, PlanSpec, PlanTensor

__all__ = ["RTX_COMPUTE_CAPABILITIES", "CancelledError", "Progress", "compile_plan", "refuse"]

# Called with a phase, the step it is at and its steps; what it returns says whether to go on.
Progress = Callable[[str, int, int], bool]

RTX_COMPUTE_CAPABILITIES = PLAN_CAPABILITIES["tensorrt-rtx"]
# Turing has no units for these.
_BEFORE_AMPERE = ("sm75",)
_FROM_AMPERE = ("fp32", "tf32", "bf16", "int4")
_FP8 = ("sm89", "sm120", "sm121")
_log = logging.getLogger(__name__)


class CancelledError(Exception):
    """Whoever asked for the plan does not want it any more."""


def compile_plan(spec: PlanSpec, target: Path, progress: Progress) -> PlanReport:
    """Parses, proves and compiles a graph; the plan is written as it is made.

    Args:
        spec: What to compile.
        target: Where the plan goes; the file is there only when this returns.
        progress: Called on the compiler's threads.

    Raises:
        PlanMismatchError: TensorRT is not installed, or the parsed network is not the graph.
        UnsupportedError: TensorRT does not compile the graph, or not for these GPUs.
        CancelledError: `progress` returned False.
    """
    refuse(spec)
    trt = load_flavour(spec.flavour)
    began = time.perf_counter()
    complaints = Complaints.of(trt, logging.DEBUG)
    builder = trt.Builder(complaints)
    network = builder.create_network(0)
    parser = parse(trt, network, complaints, spec.model)  # owns the weights until the end
    prove(trt, network, spec.num_attentions, spec.num_caches)
    targets, left_out = _able(spec, float_product(trt, network))
    monitor = _monitor(trt, progress)
    config = _config(trt, builder, spec, targets, monitor)
    # TensorRT for RTX measures nothing when it compiles: it makes the kernels where the plan runs.
    timings = spec.timing_cache if spec.flavour == "tensorrt" else None
    with _timing_cache(config, timings) as notes, _Plan.of(trt, target) as plan:
        if not builder.build_serialized_network_to_stream(network, config, plan):
            if monitor.is_cancelled:
                raise CancelledError("the compilation was cancelled")
            raise UnsupportedError(
                f"{spec.flavour} does not compile {spec.model.name} in {spec.precision} for "
                f"{', '.join(spec.compute_capabilities)}: {complaints.last()}. Try another "
                "precision or target"
            )
    if not complaints.activation_bytes:
        notes.append(f"{spec.flavour} did not say what its runs work in")
    report = PlanReport(
        flavour=spec.flavour,
        version=str(trt.__version__),
        compute_capabilities=targets,
        num_bytes=target.stat().st_size,
        activation_bytes=complaints.activation_bytes,
        seconds=round(time.perf_counter() - began, 3),
        num_attentions=spec.num_attentions,
        num_caches=spec.num_caches,
        tensors=tuple(_tensors(network)),
        layer_info=layer_info(network),
        notes=(*left_out, *notes),
    )
    del parser
    return report


def refuse(spec: PlanSpec) -> None:
    """Refuses what can never be compiled, before anything slow.

    Raises:
        UnsupportedError: The flavour has no kernels for a GPU, or the GPU none for the precision.
    """
    targets = _targets(spec)
    if spec.flavour == "tensorrt-rtx":
        for target in targets:
            if target not in (*RTX_COMPUTE_CAPABILITIES, "current"):
                raise UnsupportedError(
                    f"TensorRT for RTX does not compile for {target}, only for "
                    f"{', '.join(RTX_COMPUTE_CAPABILITIES)}: use --target tensorrt:{target} on a "
                    "machine with such a GPU"
                )
    lacking = [t for t in targets if not _has(t, spec.precision)]
    if lacking:
        raise UnsupportedError(
            f"{', '.join(lacking)} does not compute in {spec.precision}: use fp16, or later GPUs"
        )


def _has(target: str, precision: str) -> bool:
    """Whether GPUs of a compute capability have units for a precision."""
    if precision == "fp8":
        return target in (*_FP8, "sm90", "sm100", "sm103", "current")
    return target not in _BEFORE_AMPERE or precision not in _FROM_AMPERE


def _targets(spec: PlanSpec) -> tuple[str, ...]:
    if spec.compute_capabilities != ("any",):
        return spec.compute_capabilities
    return tuple(t for t in RTX_COMPUTE_CAPABILITIES if _has(t, spec.precision))


def _able(spec: PlanSpec, float_product: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Targets that have what the network needs, and what is said of others that "any" would have.

    A graph in half precision may keep a product of positions in fp32, which they would not survive.
    """
    targets = _targets(spec)
    if spec.compute_capabilities != ("any",) or not float_product:
        return targets, ()
    able = tuple(target for target in targets if target not in _BEFORE_AMPERE)
    lacking = [target for target in targets if target in _BEFORE_AMPERE]
    said = f"{', '.join(lacking)} is left out: it has no product in fp32, as {float_product} is"
    return able, (said,) if lacking else ()


def _config(
    trt: ModuleType, builder: Handle, spec: PlanSpec, targets: tuple[str, ...], monitor: Handle
) -> Handle:
    config = builder.create_builder_config()
    config.builder_optimization_level = spec.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor
    if spec.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_bytes)
    if spec.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # it rounds inputs of products to 10 bits
    if spec.flavour == "tensorrt-rtx":
        # No kernel may allocate for itself, or a run could not be captured in a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if spec.flavour == "tensorrt-rtx" and spec.compute_capabilities != ("current",):
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), i)
    for profile in spec.profiles:
        ranges = builder.create_optimization_profile()
        for shapes in profile.inputs:
            ranges.set_shape(shapes.name, shapes.min, shapes.opt, shapes.max)
        config.add_optimization_profile(ranges)
    return config


@contextlib.contextmanager
def _timing_cache(config: Handle, file: Path | None) -> Iterator[list[str]]:
    """Lets the compiler use what it measured before, and keeps what it measured now.

    Builds of one machine share the file: it is read before and replaced after, as a whole.
    """
    notes: list[str] = []
    if file is None:
        yield notes
        return
    known = file.read_bytes() if file.exists() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        notes.append(f"{file.name} is of another GPU or version of TensorRT and begins anew")
        _log.warning("%s", notes[-1])
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, True)
    yield notes
    found = config.get_timing_cache()
    if found is not None:
        replace_file(file, [memoryview(found.serialize())])


def _tensors(network: Handle) -> Iterator[PlanTensor]:
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        yield PlanTensor(tensor.name, tensor.dtype.name, tuple(tensor.shape), is_input=True)
    for i in range(network.num_outputs):
        tensor = network.get_output(i)
        yield PlanTensor(tensor.name, tensor.dtype.name, tuple(tensor.shape), is_input=False)


class _Plan:
    """The file that a plan is written to, part by part: it is never in memory as a whole."""

    @staticmethod
    @contextlib.contextmanager
    def of(trt: ModuleType, target: Path) -> Iterator[Handle]:
        """A writer of the binding's own kind; the file takes its name when all went well."""

        class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.file = unfinished.open("wb")

            def write(self, data: bytes) -> int:
                return self.file.write(data)

        unfinished = target.with_name(f"{target.name}.unfinished")
        writer = Writer()
        try:
            yield writer
            writer.file.flush()
            os.fsync(writer.file.fileno())
            writer.file.close()
            unfinished.replace(target)
        finally:
            writer.file.close()
            unfinished.unlink(missing_ok=True)


def _monitor(trt: ModuleType, progress: Progress) -> Handle:
    """Passes the compiler's progress on; asks it to end where nobody wants the plan any more."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.is_cancelled = False
            self._sizes: dict[str, int] = {}

        def phase_start(self, name: str, _parent: str | None, num_steps: int) -> None:
            self._sizes[name] = num_steps

        def step_complete(self, name: str, step: int) -> bool:
            if not progress(name, step + 1, self._sizes.get(name, 0)):
                self.is_cancelled = True
            return not self.is_cancelled

        def phase_finish(self, name: str) -> None:
            self._sizes.pop(name, None)

    return Monitor()
