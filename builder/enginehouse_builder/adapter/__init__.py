"""Merges a LoRA adapter into the checkpoint that it was trained on."""

from .description import Adapter, read_adapter
from .merge import merge

__all__ = ["Adapter", "merge", "read_adapter"]
