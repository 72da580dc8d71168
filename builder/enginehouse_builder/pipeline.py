"""A build: the chain of stages from a model to a published version.

    resolve ▶ merge ▶ export ▶ reference ▶ quantize ▶ compile ▶ certify ▶ measure ▶ publish

OpenVINO and ONNX Runtime read ONNX, and compile it or lower it at load; TensorRT's plans are
compiled ahead. What happens between resolving and publishing is the task's own affair.
"""

import time
from dataclasses import replace

from enginehouse_server.engine.threads import available_threads

from .cache import Cache
from .display import Display
from .errors import SpecError
from .manifest import StageTime
from .publish import Published, check_repository
from .resolve import Resolved, resolve
from .samples import read_samples
from .settings import check_numbers, check_targets, described, probe_host
from .spec import BuildSpec, Task
from .stages import CompileSettings, Workplace
from .stages.context import Context
from .stages.merge import run_merge
from .targets import Targets, targets_of
from .tasks.building import Building
from .tasks.classify import build_classifier, check_classifier, classifier_limits
from .tasks.generate import build_decoder, decoder_limits
from .tasks.publish import publish_parts

__all__ = ["build", "check"]

_BUILD = {"classify": build_classifier, "generate": build_decoder}
_LIMITS = {"classify": classifier_limits, "generate": decoder_limits}


def build(spec: BuildSpec, display: Display) -> Published:
    """Builds, proves and publishes one version of a model.

    Raises:
        BuildError: It cannot be done; nothing was published.
    """
    host = probe_host(spec.target)
    targets = targets_of(spec.target, spec.precision, host, spec.command).for_task(spec.task)
    devices = described(targets.chosen, host)
    check(spec)
    check_targets(targets.chosen, host, devices, spec.cache_precision)
    samples = read_samples(spec.samples)
    check_repository(spec.repository)
    times: list[StageTime] = []
    resolved, targets = _resolve(spec, targets, display, times)
    for reason in targets.left_out:
        display.note(f"auto leaves out {reason}")
    with Cache(spec.cache, report=display.note) as cache:
        place = Workplace(
            cache=cache,
            host=host,
            targets=targets.chosen,
            devices=devices,
            num_threads=spec.num_threads or available_threads(),
            compiling=CompileSettings(spec.optimization_level, spec.workspace_bytes),
        )
        building = Building(place, display, times)
        context = Context(place, spec, resolved, samples)
        if resolved.adapter is not None:
            context = _merged(building, context)
        return publish_parts(building, spec.repository, _BUILD[resolved.task](building, context))


def check(spec: BuildSpec) -> None:
    """Refuses what can never be built, before anything slow.

    Raises:
        SpecError: The settings cannot be meant.
    """
    check_numbers(
        {
            "--max-tokens": spec.max_tokens,
            "--max-batch": spec.max_batch,
            "--max-batch-tokens": spec.max_batch_tokens,
            "--threads": spec.num_threads,
            "--workspace": spec.workspace_bytes,
        }
    )
    if not spec.certify_minutes >= 0:
        raise SpecError(f"--certify-minutes is {spec.certify_minutes}, but must be at least 0")
    if spec.task is not None:
        _check_task(spec, spec.task)


def _check_task(spec: BuildSpec, task: Task) -> None:
    if task == "classify":
        check_classifier(spec)
    if task == "generate" or spec.max_tokens is not None:
        _LIMITS[task](spec, spec.max_tokens or 1)


def _resolve(
    spec: BuildSpec, targets: Targets, display: Display, times: list[StageTime]
) -> tuple[Resolved, Targets]:
    """The original, and what is built for its task."""
    started = time.perf_counter()
    with display.stage("resolve") as stage:
        resolved = resolve(spec, stage.report)
        _check_task(spec, resolved.task)
        targets = targets.for_task(resolved.task)
        revision = f" at {resolved.source.revision[:12]}" if resolved.source.revision else ""
        stage.result = (
            f"{resolved.source.id}{revision}, {resolved.source.architecture}, "
            f"to serve as {resolved.name!r}"
        )
    times.append(StageTime("resolve", time.perf_counter() - started))
    return resolved, targets


def _merged(building: Building, context: Context) -> Context:
    """The context with the merged checkpoint for the original."""
    adapter = context.resolved.adapter
    assert adapter is not None
    with building.stage("merge") as stage:
        merged = run_merge(context, adapter, stage.report)
        building.took("merge", merged)
        stage.result = f"{adapter.name} into {merged.value.num_weights} weights{merged.note}"
    return replace(context, resolved=replace(context.resolved, folder=merged.folder))
