"""Makes the engine of every target and proves it; what fails in one precision may pass in another.

A target that was asked for by name must be built. One that `auto` found is left out, aloud, where
it cannot be.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from enginehouse_builder.errors import BuildError, CertificateError
from enginehouse_builder.host import BACKENDS
from enginehouse_builder.precisions import retry_of
from enginehouse_builder.targets import Target

from .building import Building

__all__ = ["Made", "Verdicts", "prove"]


class Made(Protocol):
    """An engine's file, whatever the task."""

    @property
    def target(self) -> Target:
        """What it is for, in the precision that it was made in."""
        ...


G = TypeVar("G", bound=Made)
C = TypeVar("C")
Verdicts = Sequence[C | BuildError]


def prove(
    building: Building,
    task: str,
    make: Callable[[Target], G],
    certify: Callable[[Sequence[G]], Verdicts[C]],
) -> list[tuple[G, C]]:
    """The engine of every target with its certificate, better targets first.

    Args:
        building: The build.
        task: What the model does.
        make: Makes the engine of a target.
        certify: Gives, for each engine, its certificate or why it has none.

    Raises:
        BuildError: A target that was named, or the last that was left, cannot be built.
    """
    pending = list(building.place.targets)
    proven: list[tuple[G, C]] = []
    left_out: list[BuildError] = []
    while pending:
        made: list[G] = []
        for target in pending:
            try:
                made.append(make(target))
            except BuildError as error:
                _leave_out(building, target, error)
                left_out.append(error)
        pending = []
        for engine, verdict in zip(made, certify(made) if made else [], strict=True):
            if not isinstance(verdict, BuildError):
                proven.append((engine, verdict))
                continue
            again = _again(building, engine.target, task, verdict)
            if again is not None:
                pending.append(again)
            else:
                _leave_out(building, engine.target, verdict)
                left_out.append(verdict)
    if not proven:
        raise left_out[0]
    return sorted(proven, key=lambda found: BACKENDS.index(found[0].target.backend))


def _again(building: Building, target: Target, task: str, error: BuildError) -> Target | None:
    """The target in the precision that is tried next, if there is one."""
    if not isinstance(error, CertificateError):
        return None  # it did not run at all
    precision = retry_of(target.backend, target.capabilities, target.precision, task)
    device = building.place.devices.get(target.backend)
    if precision is None or (device is not None and not device.has_bf16):
        return None
    building.note(
        f"{target.name} does not keep its certificate in {target.precision}, so it is built in "
        f"{precision}, which has the range of fp32: {error}"
    )
    return target._replace(precision=precision)


def _leave_out(building: Building, target: Target, error: BuildError) -> None:
    """Goes on without a target that nobody named.

    Raises:
        BuildError: Somebody did.
    """
    if target.is_named:
        raise error
    building.note(f"auto leaves out {target.name}={target.precision}: {error}")
