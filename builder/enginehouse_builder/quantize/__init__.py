"""The canonical graph in fewer bits: a classifier's, calibrated, or a decoder's weights alone."""

from .int8 import Calibration, Quantized, quantize
from .levels import EightBits
from .weights import QuantizedWeights, WeightPrecision, quantize_weights

__all__ = [
    "Calibration",
    "EightBits",
    "Quantized",
    "QuantizedWeights",
    "WeightPrecision",
    "quantize",
    "quantize_weights",
]
