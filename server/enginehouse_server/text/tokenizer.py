"""Texts to token ids, by the model's own tokenizer.json, without transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers

from enginehouse_server.errors import RepositoryError

__all__ = ["Encoding", "TextInput", "Tokenizer", "load_tokenizer"]

FILE_NAME = "tokenizer.json"


class TextInput(NamedTuple):
    """A text, or two that are judged together."""

    text: str
    text_pair: str | None = None


class Encoding(NamedTuple):
    """Tokens of one input.

    Attributes:
        ids: Token ids, special tokens included.
        type_ids: Which of two texts each token is of; None when all are of the first.
        full_length: Tokens before truncation; greater than `len(ids)` if the input was cut.
    """

    ids: list[int]
    type_ids: list[int] | None
    full_length: int


class Tokenizer:
    """A fast tokenizer. Calls release the GIL while they work; any thread may call."""

    def __init__(self, file: Path, max_tokens: int) -> None:
        """Reads the tokenizer.

        Args:
            file: The model's tokenizer.json.
            max_tokens: Length that `truncate` cuts to.

        Raises:
            RepositoryError: The file cannot be read.
        """
        self._plain = load_tokenizer(file)
        self._plain.no_truncation()
        self._truncating = load_tokenizer(file)
        self._truncating.enable_truncation(max_tokens, strategy="longest_first")
        self.max_tokens = max_tokens

    def encode(self, inputs: Sequence[TextInput], *, truncate: bool = False) -> list[Encoding]:
        """Tokenizes inputs.

        Args:
            inputs: Texts, or pairs.
            truncate: Cut what is longer than `max_tokens`, the longer text of a pair first.

        Returns:
            An encoding an input, in order; not truncated ones may be longer than `max_tokens`.
        """
        found = self._plain.encode_batch_fast([_argument(i) for i in inputs])
        encodings = []
        for source, encoding in zip(inputs, found, strict=True):
            length = len(encoding.ids)
            if truncate and length > self.max_tokens:
                encoding = self._truncating.encode(source.text, source.text_pair)  # noqa: PLW2901
            type_ids = encoding.type_ids
            encodings.append(Encoding(encoding.ids, type_ids if any(type_ids) else None, length))
        return encodings


def load_tokenizer(file: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json as a tokenizer that does not pad.

    Raises:
        RepositoryError: The file cannot be read.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise RepositoryError(f"{file} is not a readable tokenizer: {error}") from error
    tokenizer.no_padding()
    return tokenizer


def _argument(source: TextInput) -> str | tuple[str, str]:
    return source.text if source.text_pair is None else (source.text, source.text_pair)
