"""A load of Generate requests."""

from .lengths import Fixed, Lengths, Lognormal, Uniform, parse_lengths
from .result import GenerateResult
from .run import run_closed, run_open
from .settings import GenerateSettings

__all__ = [
    "Fixed",
    "GenerateResult",
    "GenerateSettings",
    "Lengths",
    "Lognormal",
    "Uniform",
    "parse_lengths",
    "run_closed",
    "run_open",
]
