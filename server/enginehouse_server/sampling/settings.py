"""What one sequence asks of sampling: plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["SamplingSettings"]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How tokens are chosen; checked by whoever takes the request.

    Attributes:
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Only so many of the most likely tokens; 0 for all.
        top_p: Only the most likely tokens that together reach this probability.
        min_p: Only tokens of at least this share of the most likely one's probability.
        repetition_penalty: Divides positive and multiplies negative logits of tokens that prompt or
            answer have (Keskar et al. 2019, arXiv:1909.05858); 1 is none.
        presence_penalty: Taken off the logits of tokens that the answer has.
        frequency_penalty: Taken off once for each time that the answer has a token.
        logit_bias: Added to the logits, by token.
        bad_words: Token sequences whose last token is never chosen after the others.
        seed: Random numbers depend on it, the sequence's index and the position alone.
        num_logprobs: How many of the most likely tokens are reported with the chosen one; 0 for the
            chosen alone, None for none.
        banned_until_min: Tokens that may not come before `min_new_tokens`: those that would end.
        min_new_tokens: How many tokens come before those may.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: Sequence[Sequence[int]] = ()
    seed: int = 0
    num_logprobs: int | None = None
    banned_until_min: frozenset[int] = frozenset()
    min_new_tokens: int = 0
