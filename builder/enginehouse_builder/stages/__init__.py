"""The stages between the original and its publication."""

from .context import MODEL_FILE, REFERENCE_FILE, Context, Report, Result
from .merge import run_merge

__all__ = ["MODEL_FILE", "REFERENCE_FILE", "Context", "Report", "Result", "run_merge"]
