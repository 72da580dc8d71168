"""A causal language model to one canonical graph of attention and cache operators."""

from .export import ExportedDecoder, export_decoder

__all__ = ["ExportedDecoder", "export_decoder"]
