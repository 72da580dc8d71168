"""Measures a server under load: `run_closed`, `run_open`, and reports of what they found."""

from .result import LoadResult
from .run import precise_loop, run_closed, run_open
from .settings import LoadSettings
from .texts import DEFAULT_TEXTS

__all__ = [
    "DEFAULT_TEXTS",
    "LoadResult",
    "LoadSettings",
    "precise_loop",
    "run_closed",
    "run_open",
]
