"""A load of Classify requests."""

from .result import LoadResult
from .run import run_closed, run_open
from .settings import LoadSettings
from .texts import DEFAULT_TEXTS

__all__ = ["DEFAULT_TEXTS", "LoadResult", "LoadSettings", "run_closed", "run_open"]
