"""Decides what runs next, with the clock passed in; a thread for each lane obeys."""

from .batcher import Batch, EncoderBatcher
from .encoder import EncoderScheduler
from .generate import GenerateScheduler
from .generate_policy import GeneratePolicy, StepFigures
from .generate_work import (
    DeliverTokens,
    Emitted,
    Ending,
    FinishReason,
    GenerateWork,
    StructureSpec,
    TokenLogprobs,
)
from .grid import LatencyModel, ShapeGrid
from .pace import StepPace
from .work import Completion, EncoderWork, Policy

__all__ = [
    "Batch",
    "Completion",
    "DeliverTokens",
    "Emitted",
    "EncoderBatcher",
    "EncoderScheduler",
    "EncoderWork",
    "Ending",
    "FinishReason",
    "GeneratePolicy",
    "GenerateScheduler",
    "GenerateWork",
    "LatencyModel",
    "Policy",
    "ShapeGrid",
    "StepFigures",
    "StepPace",
    "StructureSpec",
    "TokenLogprobs",
]
