"""What is done to ONNX graphs before a runtime compiles them."""

from .floats import HalfPrecision, to_half

__all__ = ["HalfPrecision", "to_half"]
