"""ONNX Runtime, by its provider for processors: what it runs it runs on any machine."""

from .encoder import OnnxRuntimeEncoder

__all__ = ["OnnxRuntimeEncoder"]
