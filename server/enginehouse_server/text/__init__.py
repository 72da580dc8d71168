"""Tokenizers. A leaf: imports nothing else of the server but its errors."""

from .tokenizer import Encoding, TextInput, Tokenizer
from .tokenizing import TokenizeJob, TokenizerThread

__all__ = ["Encoding", "TextInput", "TokenizeJob", "Tokenizer", "TokenizerThread"]
