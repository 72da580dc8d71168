"""Measures a server under load: `run_closed`, `run_open`, and reports of what they found."""

from .classify import DEFAULT_TEXTS, LoadResult, LoadSettings, run_closed, run_open
from .drive import precise_loop

__all__ = [
    "DEFAULT_TEXTS",
    "LoadResult",
    "LoadSettings",
    "precise_loop",
    "run_closed",
    "run_open",
]
