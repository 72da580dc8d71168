"""The original model to the canonical ONNX graph."""

from .classifier import ExportedClassifier, export_classifier
from .decoder import ExportedDecoder, export_decoder

__all__ = ["ExportedClassifier", "ExportedDecoder", "export_classifier", "export_decoder"]
