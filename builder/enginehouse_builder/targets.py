"""What a build makes engines for: runtimes, each in a precision."""

from collections.abc import Sequence
from typing import NamedTuple, get_args

from enginehouse_server.engine.base import Precision
from enginehouse_server.engine.create import BACKENDS
from enginehouse_server.engine.decoder import DecoderPrecision

from .errors import SpecError

__all__ = ["Target", "targets_of"]

_PRECISIONS = get_args(DecoderPrecision)
_PLANNED = ("tensorrt", "tensorrt-rtx")


class Target(NamedTuple):
    """A runtime, and the precision of its engine."""

    backend: str
    precision: DecoderPrecision

    @property
    def encoder_precision(self) -> Precision:
        """Precision of a classifier's engine.

        Raises:
            SpecError: No classifier is built in it.
        """
        if self.precision == "int4":
            raise SpecError("--precision int4 is for decoders: use fp32, bf16 or int8")
        return self.precision


def targets_of(asked: Sequence[str], precision: DecoderPrecision) -> tuple[Target, ...]:
    """The targets that are asked for, better ones first.

    Args:
        asked: As the command line has them, BACKEND or BACKEND=PRECISION; none is openvino.
        precision: Of those without one of their own.

    Raises:
        SpecError: One is unknown, or comes twice.
    """
    targets = [_target(text, precision) for text in asked or BACKENDS[:1]]
    backends = [target.backend for target in targets]
    if len(set(backends)) < len(backends):
        raise SpecError(
            f"--target is given twice for one runtime ({', '.join(asked)}): a version has one "
            "engine of each"
        )
    return tuple(sorted(targets, key=lambda target: BACKENDS.index(target.backend)))


def _target(text: str, precision: DecoderPrecision) -> Target:
    backend, has_own, own = text.partition("=")
    if backend not in BACKENDS:
        why = "is not built by this version" if backend in _PLANNED else "is unknown"
        raise SpecError(f"--target {backend} {why}: use {' or '.join(BACKENDS)}")
    for known in _PRECISIONS:
        if known == (own if has_own else precision):
            return Target(backend, known)
    raise SpecError(
        f"--target is {text!r}, but its precision must be one of {', '.join(_PRECISIONS)}"
    )
