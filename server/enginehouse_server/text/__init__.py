"""Texts to tokens and back, and conversations to texts. Imports of the server its errors alone."""

from .chat import ChatTemplate, Message, read_chat_template
from .incremental import IncrementalText
from .stops import StopStrings
from .tokenizer import Encoding, TextInput, Tokenizer
from .tokenizing import TokenizeJob, TokenizerThread
from .vocabulary import Vocabulary

__all__ = [
    "ChatTemplate",
    "Encoding",
    "IncrementalText",
    "Message",
    "StopStrings",
    "TextInput",
    "TokenizeJob",
    "Tokenizer",
    "TokenizerThread",
    "Vocabulary",
    "read_chat_template",
]
