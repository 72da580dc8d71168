"""How long sequences may be so that a certificate can look past every threshold within them.

A threshold is a window of attention, or a length that positions are scaled from. What an engine
does beyond one is only proven by a prompt that goes there; where asking the original such a prompt
is too dear, sequences end at the threshold. Knows the price of a prompt, not how it comes about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .prompts import long_prompt_tokens, reached_lengths

__all__ = ["Budget", "OriginalPace", "Price", "Reach", "reach_of"]

_PIECE = 512  # tokens that the original reads at a time


@dataclass(frozen=True, slots=True)
class OriginalPace:
    """How fast the original reads, as far as it was timed.

    Attributes:
        token_s: Of a token of a prompt, without what is before it.
        context_s: What each token before it adds to that.
        step_s: Of one more token of an answer, after a short text.
        has_cache: Whether it need not read again what was before.
    """

    token_s: float
    context_s: float
    step_s: float
    has_cache: bool

    def seconds(self, num_prompt: int, num_new: int) -> float:
        """What a prompt and its answer take, about."""
        ends = [*range(_PIECE, num_prompt, _PIECE), num_prompt]
        if not self.has_cache:
            ends += range(num_prompt + 1, num_prompt + num_new)
            return float(sum(end * self._token_s(end) for end in ends))
        starts = [0, *ends]
        read = sum((b - a) * self._token_s(b) for a, b in zip(starts, ends, strict=False))
        return float(read + num_new * (self.step_s + self.context_s * num_prompt))

    def _token_s(self, num_before: int) -> float:
        return self.token_s + self.context_s * num_before


class Price(NamedTuple):
    """What asking a prompt takes."""

    seconds: float
    num_bytes: int


class Budget(NamedTuple):
    """What it may take; None for as much memory as it likes."""

    seconds: float
    num_bytes: int | None


class Reach(NamedTuple):
    """Longest sequence that is served, and why it is not longer; empty if it is as was wanted."""

    max_tokens: int
    reason: str


def reach_of(
    max_tokens: int,
    lengths: Sequence[int],
    price: Callable[[int, int], Price],
    budget: Budget,
) -> Reach:
    """The longest sequence, at most `max_tokens`, whose thresholds can all be looked past.

    Args:
        max_tokens: Longest sequence that is wanted.
        lengths: The thresholds; 0 is none.
        price: Of the long prompt of so many tokens in sequences of at most so many.
        budget: For the one long prompt.
    """
    limit, reason = max_tokens, ""
    for length in sorted(reached_lengths(limit, lengths), reverse=True):
        num_prompt = long_prompt_tokens(limit, lengths)
        if num_prompt <= long_prompt_tokens(limit, ()):
            break  # it is asked anyway
        if not (found := _too_dear(price(num_prompt, limit), budget)):
            break
        limit = length
        reason = (
            f"{length} tokens instead of {max_tokens}: what the model does beyond {length} could "
            f"not be certified, since asking the original a prompt of {num_prompt} tokens would "
            f"take about {found}"
        )
    return Reach(limit, reason)


def _too_dear(price: Price, budget: Budget) -> str:
    if budget.num_bytes is not None and price.num_bytes > budget.num_bytes:
        return (
            f"{price.num_bytes / 1e9:.1f} GB of memory, and {budget.num_bytes / 1e9:.1f} GB are "
            "left beside the weights"
        )
    if price.seconds > budget.seconds:
        return (
            f"{price.seconds / 60:.1f} minutes, and {budget.seconds / 60:.1f} are allowed: raise "
            "--certify-minutes to have it asked"
        )
    return ""
