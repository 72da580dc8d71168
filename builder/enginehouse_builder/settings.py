"""Checks of what is asked for against this machine, before anything slow."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

from enginehouse_server.engine.create import describe
from enginehouse_server.engine.decoder import CachePrecision
from enginehouse_server.engine.device import Device
from enginehouse_server.engine.gpus import find_gpus
from enginehouse_server.engine.machine import probe_machine
from enginehouse_server.errors import DeviceError, PlanMismatchError

from .cache_precision import check_cache_precision
from .errors import SpecError
from .host import BACKENDS, Host
from .stages.compile import STAND_IN_BACKEND
from .targets import AUTO, Target

__all__ = ["check_numbers", "check_targets", "described", "probe_host"]

_ONNX_BACKENDS = ("openvino", "onnxruntime")


def probe_host(asked: Sequence[str]) -> Host:
    """This machine, as far as targets that are asked for depend on it.

    Args:
        asked: As the command line has them.
    """
    names = {re.split("[:=]", word)[0] for text in asked for word in text.split()}
    if AUTO in names or (not names and find_gpus().devices):
        names = set(BACKENDS)
    return Host.from_machine(probe_machine(names & set(BACKENDS) or _ONNX_BACKENDS[:1]))


def check_numbers(numbers: Mapping[str, int | None]) -> None:
    """Refuses numbers below 1.

    Args:
        numbers: By option; None where nothing is said.

    Raises:
        SpecError: One is.
    """
    for option, number in numbers.items():
        if number is not None and number < 1:
            raise SpecError(f"{option} is {number}, but must be at least 1")


def described(targets: Sequence[Target], host: Host) -> dict[str, Device]:
    """What runs engines here: that of each target, and what stands for plans.

    Plans run where there is a GPU that can be opened; where not, they are compiled all the same.

    Raises:
        SpecError: What must run is not installed.
    """
    wanted = {target.backend for target in targets if not target.is_plan}
    if any(target.is_plan for target in targets):
        wanted.add(STAND_IN_BACKEND)
    if not wanted & set(_ONNX_BACKENDS):
        wanted.add(_ONNX_BACKENDS[0])
    try:
        found = {backend: describe(backend) for backend in _ONNX_BACKENDS if backend in wanted}
    except PlanMismatchError as error:
        raise SpecError(
            f"--target {' '.join(t.name for t in targets)}: certificates need it: {error}"
        ) from error
    for backend in {target.backend for target in targets if target.is_plan and host.capability}:
        with suppress(PlanMismatchError, DeviceError):
            found[backend] = describe(backend)
    return found


def check_targets(
    targets: Sequence[Target],
    host: Host,
    devices: Mapping[str, Device],
    cache_precision: CachePrecision | None,
) -> None:
    """Refuses named targets that this machine cannot make or prove.

    Raises:
        SpecError: There is one.
    """
    for target in targets:
        if not target.is_named:
            continue  # it is left out where it fails
        name = f"--target {target.name}={target.precision}"
        if target.backend == "onnxruntime" and target.precision == "bf16":
            if not host.has_cuda_provider:
                raise SpecError(
                    f"{name}: ONNX Runtime computes in bf16 on a GPU alone, by its CUDA provider, "
                    "which this machine has not; use onnxruntime=fp32, fp16, int8 or, for "
                    "decoders, int4"
                )
            continue
        check_cache_precision(target, cache_precision)
        device = devices.get(target.backend)
        narrow = "bf16" in (target.precision, cache_precision)
        if device is not None and narrow and not device.has_bf16:
            raise SpecError(
                f"this processor ({device.name}) does not compute in bf16: use --precision fp32 or "
                "int8"
            )
