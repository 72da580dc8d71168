"""What a decoder is asked to continue: beginnings of the samples, and one longer than its windows.

An engine that mistakes a window or a position says so only beyond the window, or beyond the length
that its positions are scaled from, so one prompt is made that reaches there, of all samples one
after the other.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from enginehouse_builder.errors import SpecError
from enginehouse_server.text import TextInput, Tokenizer

__all__ = [
    "MIN_PROMPTS",
    "Prompt",
    "choose_prompts",
    "long_prompt_tokens",
    "new_tokens",
    "reached_lengths",
    "tokens_at_once",
    "usual_prompt_tokens",
]

MIN_PROMPTS = 16  # of a certificate, beside the long one, where the samples have as many

_MAX_PROMPTS = 48
_NEW_TOKENS = 24
_SHORT = 96  # tokens of a usual prompt, at most
_LEAST = 2
_BEYOND = 48
_LONG_ANYWAY = 320
_AT_ONCE = 16  # sequences that have cache at the same time, twins' donors among them
_BLOCK = 32  # tokens: each sequence's last block may be nearly empty


class Prompt(NamedTuple):
    """What is to be continued.

    Attributes:
        text: Where its tokens are from; they may be cut.
        tokens: Ids.
        num_new: How many tokens are to follow.
        is_long: Whether it is there for its length; its own text is not judged.
    """

    text: str
    tokens: tuple[int, ...]
    num_new: int
    is_long: bool


def choose_prompts(
    texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int, lengths: Sequence[int]
) -> list[Prompt]:
    """The long prompt, then the others: every beginning of the list is spread over their lengths.

    Args:
        texts: The samples.
        tokenizer: The model's.
        max_tokens: Longest sequence, prompt and answer.
        lengths: What one prompt must be longer than: windows of the layers' attention and lengths
            that positions are scaled from; 0 is none.

    Raises:
        SpecError: No sample is long enough to be a prompt.
    """
    num_new = new_tokens(max_tokens)
    limit = usual_prompt_tokens(max_tokens)
    rows = tokenizer.encode([TextInput(text) for text in texts])
    found = {
        tuple(row.ids[:limit]): text
        for text, row in zip(texts, rows, strict=True)
        if len(row.ids) >= min(_LEAST, limit)
    }
    if not found:
        raise SpecError("no sample is two tokens long: give longer texts with --samples")
    ordered = sorted(found, key=lambda tokens: (len(tokens), tokens))
    short = [Prompt(found[tokens], tokens, num_new, False) for tokens in _spread(ordered)]
    long = _long_prompt(texts, tokenizer, long_prompt_tokens(max_tokens, lengths))
    return [Prompt(texts[0], long, num_new, True), *short[:_MAX_PROMPTS]]


def new_tokens(max_tokens: int) -> int:
    """How many tokens are to follow each prompt."""
    return min(_NEW_TOKENS, max_tokens // 2)


def usual_prompt_tokens(max_tokens: int) -> int:
    """Most tokens of a prompt that is not there for its length."""
    return min(_SHORT, max_tokens - new_tokens(max_tokens))


def tokens_at_once(lengths: Iterable[int]) -> int:
    """Room in the cache for as many of the longest sequences as have it at the same time.

    Args:
        lengths: Of the sequences, prompt and answer.
    """
    return sum(length + _BLOCK for length in sorted(lengths)[-_AT_ONCE:])


def reached_lengths(max_tokens: int, lengths: Sequence[int]) -> list[int]:
    """Those of the lengths that sequences of at most `max_tokens` go beyond."""
    return [length for length in lengths if 0 < length < max_tokens]


def long_prompt_tokens(max_tokens: int, lengths: Sequence[int]) -> int:
    """Of the long prompt: beyond every length that it reaches, if only with its answer."""
    reached = reached_lengths(max_tokens, lengths)
    beyond = max([_LONG_ANYWAY, *(length + _BEYOND for length in reached)])
    return min(max_tokens - new_tokens(max_tokens), beyond)


def _long_prompt(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> tuple[int, ...]:
    text = "\n\n".join(texts)
    [row] = tokenizer.encode([TextInput(text)])
    while len(row.ids) < length:
        text = f"{text}\n\n{text}"
        [row] = tokenizer.encode([TextInput(text)])
    return tuple(row.ids[:length])


def _spread(ordered: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The same in another order: first some from all over, then the rest from all over."""
    step = max(1, len(ordered) // MIN_PROMPTS)
    return [ordered[i] for start in range(step) for i in range(start, len(ordered), step)]
