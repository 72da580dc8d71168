"""Tokenizers. A leaf: imports nothing else of the server but its errors."""

from .tokenizer import Encoding, TextInput, Tokenizer

__all__ = ["Encoding", "TextInput", "Tokenizer"]
