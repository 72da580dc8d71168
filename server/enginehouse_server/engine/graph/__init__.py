"""What is done to ONNX graphs before a runtime compiles them."""

from .floats import HalfPrecision, to_half
from .stored import to_rounding
from .weights import read_weight

__all__ = ["HalfPrecision", "read_weight", "to_half", "to_rounding"]
