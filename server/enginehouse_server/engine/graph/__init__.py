"""What is done to ONNX graphs before a runtime compiles them."""

from .floats import HalfPrecision, to_half
from .stored import to_rounding

__all__ = ["HalfPrecision", "to_half", "to_rounding"]
