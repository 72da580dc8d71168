"""Tokens to text as they come: pieces that are the text of all tokens, none a part of a character.

What a token adds to a text depends on the tokens before it: bytes of one character may lie in
several, and the first token of a text loses its space. So a window of the last tokens is decoded
with every new one, and what it says beyond what was given already is new.
"""

from collections.abc import Sequence

from .vocabulary import Vocabulary

__all__ = ["IncrementalText"]

# How many tokens are kept before new ones: the first number that cuts no character and has a text.
_CONTEXTS = (4, 5, 6, 7, 8, 16, 32, 64)
_MAX_NEW = 32  # tokens; what is no text after so many never becomes any
_PART = "\N{REPLACEMENT CHARACTER}"


class IncrementalText:
    """The text of one sequence, piece by piece."""

    def __init__(
        self, vocabulary: Vocabulary, before: Sequence[int] = (), *, keep_special_tokens: bool
    ) -> None:
        """Starts a text.

        Args:
            vocabulary: Decodes.
            before: Tokens that the text follows on; they are not part of it.
            keep_special_tokens: Whether special tokens have a text.
        """
        self._vocabulary, self._keep = vocabulary, keep_special_tokens
        self._window: list[int] = []
        self._num_old = 0  # tokens of the window that were there at its start
        self._given = 0  # characters of the window's text that are not new
        self._restart(before)

    def push(self, token: int) -> str:
        """The text that is certain with one more token; often none."""
        self._window.append(token)
        text = self._text()
        num_new = len(self._window) - self._num_old
        # An unfinished character shows as replacement characters at the end.
        certain = text if num_new > _MAX_NEW else text.rstrip(_PART)
        piece = certain[self._given :]
        self._given = max(self._given, len(certain))
        if len(certain) == len(text) and num_new > _CONTEXTS[0]:
            self._restart(self._window)
        return piece

    def finish(self) -> str:
        """What was held back because more bytes might have followed."""
        text = self._text()
        piece = text[self._given :]
        self._given = len(text)
        return piece

    def _text(self) -> str:
        return self._vocabulary.decode(self._window, keep_special_tokens=self._keep)

    def _restart(self, tokens: Sequence[int]) -> None:
        """Keeps so many of the tokens that the next one gets the text that it has after all."""
        text = ""
        for length in _CONTEXTS:
            self._window = list(tokens[-length:])
            text = self._text()
            if length >= len(tokens) or (text.strip() and _PART not in text):
                break
        self._num_old, self._given = len(self._window), len(text)
