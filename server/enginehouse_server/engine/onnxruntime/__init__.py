"""ONNX Runtime, by its provider for processors: what it runs it runs on any machine."""

from .decoder import OnnxRuntimeDecoder
from .encoder import OnnxRuntimeEncoder

__all__ = ["OnnxRuntimeDecoder", "OnnxRuntimeEncoder"]
