"""Adapters of models whose attention does not go through transformers' interface, by family."""

from .registry import adapted, is_adaptable

__all__ = ["adapted", "is_adaptable"]
