"""Merges a LoRA adapter into the checkpoint that it was trained on."""

from .description import Adapter, read_adapter
from .merge import BaseLayout, layout_of, merge

__all__ = ["Adapter", "BaseLayout", "layout_of", "merge", "read_adapter"]
