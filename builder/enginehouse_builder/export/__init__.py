"""The original model to the canonical ONNX graph."""

from .classifier import ExportedClassifier, export_classifier

__all__ = ["ExportedClassifier", "export_classifier"]
