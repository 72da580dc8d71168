"""The stages between the original and its publication."""

from .workplace import (
    MODEL_FILE,
    PLAN_FILE,
    REFERENCE_FILE,
    CompileSettings,
    Report,
    Result,
    Workplace,
)

__all__ = [
    "MODEL_FILE",
    "PLAN_FILE",
    "REFERENCE_FILE",
    "CompileSettings",
    "Report",
    "Result",
    "Workplace",
]
