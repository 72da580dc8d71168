"""Decides what runs next, with the clock passed in; a thread for each lane obeys."""

from .batcher import Batch, EncoderBatcher
from .encoder import EncoderScheduler
from .grid import LatencyModel, ShapeGrid
from .work import Completion, EncoderWork, Policy

__all__ = [
    "Batch",
    "Completion",
    "EncoderBatcher",
    "EncoderScheduler",
    "EncoderWork",
    "LatencyModel",
    "Policy",
    "ShapeGrid",
]
