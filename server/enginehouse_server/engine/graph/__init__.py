"""What is done to ONNX graphs before a runtime compiles them."""

from .best import NUM_BEST, add_best
from .floats import HalfPrecision, to_half
from .stored import to_rounding
from .weights import read_weight

__all__ = ["NUM_BEST", "HalfPrecision", "add_best", "read_weight", "to_half", "to_rounding"]
