"""What a build makes engines for: runtimes, GPUs where it compiles for them, and precisions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from enginehouse_server.engine.base import Precision

from .errors import SpecError
from .host import BACKENDS, Host
from .precisions import PLAN_BACKENDS, PRECISIONS, capabilities_of, obstacle_to, precisions_for

__all__ = ["AUTO", "Target", "Targets", "targets_of"]

AUTO = "auto"


class Target(NamedTuple):
    """A runtime, and the precision of its engine.

    Attributes:
        backend: The runtime.
        precision: Of the engine.
        capabilities: GPUs that a plan is compiled for, as "sm89", or "any"; none without a plan.
        is_named: Whether it was asked for by name, so that it must be built; else what cannot be
            is left out.
    """

    backend: str
    precision: Precision
    capabilities: tuple[str, ...] = ()
    is_named: bool = True

    @property
    def name(self) -> str:
        """As on the command line, without the precision: no version has two of one name."""
        return ":".join(filter(None, (self.backend, ",".join(self.capabilities))))

    @property
    def folder(self) -> str:
        """The name of its folder, in letters that every file system takes."""
        return "-".join((self.backend, *self.capabilities))

    @property
    def is_plan(self) -> bool:
        """Whether it is compiled ahead."""
        return self.backend in PLAN_BACKENDS

    def obstacle(self, task: str | None) -> str:
        """Why it cannot be had in its precision, and what can be; empty if it can."""
        return obstacle_to(self.backend, self.capabilities, self.precision, task)


class Targets(NamedTuple):
    """What to build.

    Attributes:
        chosen: Targets, better ones first.
        left_out: What `auto` does not build, each with the reason.
    """

    chosen: tuple[Target, ...]
    left_out: tuple[str, ...] = ()

    def for_task(self, task: str | None) -> "Targets":
        """Those that there are for a task.

        Raises:
            SpecError: A named one is not, or none is left.
        """
        chosen, left_out = [], list(self.left_out)
        for target in self.chosen:
            obstacle = target.obstacle(task)
            if obstacle and target.is_named:
                raise SpecError(f"--target {target.name}={target.precision}: {obstacle}")
            if obstacle:
                left_out.append(f"{target.name}: {obstacle}")
            else:
                chosen.append(target)
        if not chosen:
            raise SpecError(
                f"--target {AUTO} finds nothing to build on this machine: {'; '.join(left_out)}"
            )
        return Targets(tuple(chosen), tuple(left_out))


def targets_of(
    asked: Sequence[str], precision: Precision, host: Host, command: str = "enginehouse build …"
) -> Targets:
    """The targets that are asked for, as far as they can be had here.

    Args:
        asked: As the command line has them, TARGET or TARGET=PRECISION; none is openvino, and on a
            machine with a GPU everything that can be built there.
        precision: Of those without one of their own.
        host: This machine.
        command: What to run on another machine, up to --target.

    Raises:
        SpecError: One is unknown, comes twice, or cannot be built here or at all.
    """
    texts = [word for text in asked for word in text.split()] or _default(host)
    split = [_split(text, precision) for text in texts]
    named = [_target(name, own, host) for name, own in split if name != AUTO]
    for target in named:
        _check_host(target, host, command)
    autos: list[Precision] = [own for name, own in split if name == AUTO]
    names = [target.name for target in named] + [AUTO] * len(autos)
    if len(set(names)) < len(names):
        raise SpecError(
            f"--target is given twice for one runtime ({', '.join(texts)}): a version has one "
            "engine of each"
        )
    left_out: list[str] = []
    for own in autos:
        backends = {target.backend for target in named}
        named += _automatic(own, host, backends, left_out)
    chosen = tuple(sorted(named, key=lambda target: BACKENDS.index(target.backend)))
    return Targets(chosen, tuple(left_out)).for_task(None)


def _default(host: Host) -> list[str]:
    return [AUTO] if host.capability else ["openvino"]


def _split(text: str, precision: Precision) -> tuple[str, Precision]:
    name, has_own, own = text.partition("=")
    for known in PRECISIONS:
        if known == (own if has_own else precision):
            return name, known
    raise SpecError(
        f"--target is {text!r}, but its precision must be one of {', '.join(PRECISIONS)}"
    )


def _target(name: str, precision: Precision, host: Host) -> Target:
    backend, has_own, own = name.partition(":")
    if backend not in BACKENDS:
        known = ", ".join((*BACKENDS, AUTO))
        raise SpecError(f"--target {backend} is unknown: use one of {known}")
    if backend not in PLAN_BACKENDS:
        if has_own:
            raise SpecError(
                f"--target {name}: {backend} compiles for no GPU ahead; write --target {backend}"
            )
        return Target(backend, precision)
    capabilities = tuple(dict.fromkeys(own.split(","))) if has_own else _own(backend, host)
    _check_capabilities(name, backend, capabilities, precision)
    return Target(backend, precision, capabilities)


def _check_host(target: Target, host: Host, command: str) -> None:
    """Refuses what cannot be built here, and says where it can."""
    reason = host.missing.get(target.backend, "")
    if target.backend == "tensorrt" and (reason or target.capabilities != (host.capability,)):
        gpu = f"has a GPU of {host.capability}" if host.capability else "has no GPU"
        digits = target.capabilities[0].removeprefix("sm")
        raise SpecError(
            f"--target {target.name}: a plan of the full TensorRT is compiled where it is to run, "
            f"and this machine {gpu}{'; ' * bool(reason)}{reason}. On a machine with a GPU of "
            f"compute capability {digits[:-1]}.{digits[-1]} and TensorRT 11, run\n"
            f"  {command} --target {target.name}={target.precision}"
        )
    if reason:
        raise SpecError(f"--target {target.name}: {reason}")


def _own(backend: str, host: Host) -> tuple[str, ...]:
    """What is compiled for where no GPU is named: this machine's, or any that the flavour knows."""
    if host.capability in capabilities_of(backend):
        return (host.capability,)
    if backend == "tensorrt-rtx":
        return ("any",)
    raise SpecError(
        f"--target {backend}: this machine has no GPU that it could be for; name one, for example "
        f"--target {backend}:sm90, on a machine that has it"
    )


def _check_capabilities(
    name: str, backend: str, capabilities: Sequence[str], precision: Precision
) -> None:
    known = capabilities_of(backend)
    if backend == "tensorrt-rtx" and capabilities == ("any",):
        return
    unknown = [c for c in capabilities if c not in known]
    if unknown:
        more = ""
        if backend == "tensorrt-rtx":
            more = " or any"
        if backend == "tensorrt-rtx" and unknown[0] in capabilities_of("tensorrt"):
            instead = [f"onnxruntime={p}" for p in (precision, "fp16") if _is_graph(p)]
            more += (
                f"; for {unknown[0]} use tensorrt:{unknown[0]} on a machine that has it, or "
                f"{instead[0]}"
            )
        raise SpecError(
            f"--target {name}: {backend} has no code for {unknown[0] or 'an empty name'}: use "
            f"{', '.join(known)}{more}"
        )
    if backend == "tensorrt" and len(capabilities) > 1:
        raise SpecError(
            f"--target {name}: a plan of the full TensorRT is for one kind of GPU: give a --target "
            f"each ({' '.join(f'--target {backend}:{c}' for c in capabilities)})"
        )


def _is_graph(precision: Precision) -> bool:
    return precision in precisions_for("onnxruntime", None)


def _automatic(
    precision: Precision, host: Host, taken: set[str], left_out: list[str]
) -> Iterator[Target]:
    """What can be built here, of backends that were not named; what cannot be is noted."""
    for backend in BACKENDS:
        if backend in taken:
            continue
        reason = host.missing.get(backend, "")
        capabilities: tuple[str, ...] = ()
        if backend in PLAN_BACKENDS and not reason:
            if not host.capability:
                reason = f"this machine has no GPU; name it to compile ahead ({backend}:…)"
            elif host.capability not in capabilities_of(backend):
                reason = f"it has no code for this machine's GPU, {host.capability}"
            capabilities = (host.capability,)
        if reason:
            left_out.append(f"{backend}: {reason}")
        else:
            yield Target(backend, precision, capabilities, is_named=False)
