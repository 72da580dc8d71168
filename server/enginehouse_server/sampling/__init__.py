"""How the next token is chosen from logits. Vectorised numpy; knows no engine and no texts."""

from .settings import SamplingSettings

__all__ = ["SamplingSettings"]
