"""A build: the chain of stages from a model to a published version.

    resolve ▶ merge an adapter ▶ export ▶ quantize ▶ certify ▶ measure ▶ publish

Nothing is compiled ahead: OpenVINO and ONNX Runtime read ONNX, and compile it or lower it at load.
What happens between resolving and publishing is the task's own affair.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

from enginehouse_server.engine.create import describe
from enginehouse_server.engine.device import Device
from enginehouse_server.engine.threads import available_threads
from enginehouse_server.errors import PlanMismatchError

from .cache import Cache
from .display import Display
from .errors import SpecError
from .manifest import File, Manifest, StageTime
from .publish import Published, check_repository, publish
from .resolve import Resolved, resolve
from .samples import read_samples
from .spec import BuildSpec, Task
from .stages import Context, run_merge
from .targets import Target
from .tasks import Building, build_classifier, build_decoder
from .tasks.classify import check_classifier, classifier_limits
from .tasks.generate import decoder_limits
from .version_files import Parts, items_of, manifest_of

__all__ = ["build", "check"]

_BUILD = {"classify": build_classifier, "generate": build_decoder}
_LIMITS = {"classify": classifier_limits, "generate": decoder_limits}


def build(spec: BuildSpec, display: Display) -> Published:
    """Builds, proves and publishes one version of a model.

    Raises:
        BuildError: It cannot be done; nothing was published.
    """
    devices = _devices(spec)
    check(spec, devices)
    samples = read_samples(spec.samples)
    check_repository(spec.repository)
    times: list[StageTime] = []
    resolved = _resolve(spec, display, times)
    with Cache(spec.cache, report=display.note) as cache:
        context = Context(
            spec=spec,
            cache=cache,
            resolved=resolved,
            samples=samples,
            devices=devices,
            num_threads=spec.num_threads or available_threads(),
        )
        building = Building(context, display, times)
        if resolved.adapter is not None:
            building.context = _merged(building)
        return _publish(building, _BUILD[resolved.task](building))


def check(spec: BuildSpec, devices: Mapping[str, Device]) -> None:
    """Refuses what can never be built, before anything slow.

    Raises:
        SpecError: The settings cannot be meant, or not on this machine.
    """
    numbers = {
        "--max-tokens": spec.max_tokens,
        "--max-batch": spec.max_batch,
        "--max-batch-tokens": spec.max_batch_tokens,
        "--threads": spec.num_threads,
    }
    for option, number in numbers.items():
        if number is not None and number < 1:
            raise SpecError(f"{option} is {number}, but must be at least 1")
    if not spec.certify_minutes >= 0:
        raise SpecError(f"--certify-minutes is {spec.certify_minutes}, but must be at least 0")
    if spec.task is not None:
        _check_task(spec, spec.task)
    for target in spec.targets:
        _check_target(spec, target, devices[target.backend])


def _devices(spec: BuildSpec) -> dict[str, Device]:
    """What each target runs on here.

    Raises:
        SpecError: One is unknown or not installed.
    """
    try:
        return {target.backend: describe(target.backend) for target in spec.targets}
    except PlanMismatchError as error:
        raise SpecError(f"--target: {error}") from error


def _check_target(spec: BuildSpec, target: Target, device: Device) -> None:
    if target.backend == "onnxruntime":
        if target.precision == "bf16":
            raise SpecError(
                "--target onnxruntime=bf16: ONNX Runtime does not compute in bf16 on a processor; "
                "use onnxruntime=fp32, int8 or, for decoders, int4"
            )
        if spec.cache_precision not in (None, "fp32"):
            raise SpecError(
                f"--cache-precision is {spec.cache_precision}, but --target onnxruntime keeps keys "
                "and values in slots, in fp32. Leave the option out"
            )
    spec.check_cache(target.precision)
    if "bf16" in (target.precision, spec.cache_precision) and not device.has_bf16:
        raise SpecError(
            f"this processor ({device.name}) does not compute in bf16: use --precision fp32 or int8"
        )


def _check_task(spec: BuildSpec, task: Task) -> None:
    if task == "classify":
        check_classifier(spec)
    if task == "generate" or spec.max_tokens is not None:
        _LIMITS[task](spec, spec.max_tokens or 1)


def _resolve(spec: BuildSpec, display: Display, times: list[StageTime]) -> Resolved:
    started = time.perf_counter()
    with display.stage("resolve") as stage:
        resolved = resolve(spec, stage.report)
        _check_task(spec, resolved.task)
        revision = f" at {resolved.source.revision[:12]}" if resolved.source.revision else ""
        stage.result = (
            f"{resolved.source.id}{revision}, {resolved.source.architecture}, "
            f"to serve as {resolved.name!r}"
        )
    times.append(StageTime("resolve", time.perf_counter() - started))
    return resolved


def _merged(building: Building) -> Context:
    """The context with the merged checkpoint for the original."""
    context = building.context
    adapter = context.resolved.adapter
    assert adapter is not None
    with building.stage("merge") as stage:
        merged = run_merge(context, adapter, stage.report)
        building.took("merge", merged)
        stage.result = f"{adapter.name} into {merged.value.num_weights} weights{merged.note}"
    return replace(context, resolved=replace(context.resolved, folder=merged.folder))


def _publish(building: Building, parts: Parts) -> Published:
    with building.stage("publish") as stage:
        started = time.perf_counter()

        def manifest(version: int, files: Mapping[str, File]) -> Manifest:
            seconds = round(time.perf_counter() - started, 3)
            times = (*building.times, StageTime("publish", seconds))
            return manifest_of(parts, version, files, times)

        published = publish(
            building.context.spec.repository, parts.resolved.name, items_of(parts), manifest
        )
        stage.result = str(published.folder)
    return published
