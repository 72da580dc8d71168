"""The canonical graph to int8: explicit Q/DQ, calibrated on sample texts."""

from .int8 import Calibration, Quantized, quantize

__all__ = ["Calibration", "Quantized", "quantize"]
