"""Texts to tokens and tokens to texts, for models that generate."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from .tokenizer import load_tokenizer

__all__ = ["Vocabulary"]

_KEPT_TEXTS = 65536  # tokens whose text is remembered


class Vocabulary:
    """A model's tokenizer, both ways. Calls release the GIL while they work; any thread may call.

    Attributes:
        size: Tokens that it has; the model's logits may be wider.
        longest_token: At least the characters of the longest token's text.
    """

    def __init__(self, file: Path) -> None:
        """Reads the model's tokenizer.json.

        Raises:
            RepositoryError: The file cannot be read.
        """
        self._tokenizer = load_tokenizer(file)
        self._tokenizer.no_truncation()
        # Otherwise special tokens written in a text would be kept apart from the text around them.
        self._tokenizer.encode_special_tokens = False
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        # Byte-level vocabularies write a character for each byte.
        self.longest_token = max(map(len, self._tokenizer.get_vocab()), default=1)
        self.token_text = lru_cache(_KEPT_TEXTS)(self._token_text)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text.

        Args:
            text: Special tokens that are written in it become those tokens.
            add_special_tokens: Add those that the model begins (and ends) a text with.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        """The text of tokens; bytes that are no characters become replacement characters."""
        return self._tokenizer.decode(ids, skip_special_tokens=not keep_special_tokens)

    def _token_text(self, token: int) -> str:
        """The text of one token inside a text, with the space that it begins with."""
        # At the start of a text some tokenizers drop that space: the second of two has it.
        return self.decode((token, token), keep_special_tokens=True)[
            len(self.decode((token,), keep_special_tokens=True)) :
        ]
