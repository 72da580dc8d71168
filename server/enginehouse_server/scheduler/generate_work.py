"""What passes between a caller and the scheduler of a decoder: plain data, fit for another process.

A request is one or several sequences from one prompt. What each step gave comes back as `Emitted`,
one for each sequence that got a token or ended; every sequence ends exactly once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from enginehouse_server.errors import EnginehouseError
from enginehouse_server.sampling import SamplingSettings, StructureSpec, TokenLogprobs

__all__ = [
    "DeliverTokens",
    "Emitted",
    "Ending",
    "FinishReason",
    "GenerateWork",
    "StructureSpec",
    "TokenLogprobs",
]

FinishReason = Literal["eos", "length", "stop", "cancelled"]


@dataclass(frozen=True, slots=True)
class GenerateWork:
    """One sequence to generate. Times are seconds of one monotonic clock.

    Attributes:
        request_id: The caller's own, the same for all sequences of a request.
        index: Which sequence of the request this is.
        prompt: Token ids, special tokens included, at least one.
        sampling: How tokens are chosen.
        max_new_tokens: Most tokens to generate, at least one.
        eos_ids: Tokens that end the sequence with "eos".
        stop_ids: Tokens that end the sequence with "stop".
        structure: What the text must look like; None for anything.
        num_prompt_logprobs: As `SamplingSettings.num_logprobs`, for the prompt's tokens.
        priority: Among waiting sequences the higher runs first; the lower is preempted first.
        arrived_at: When the request came in.
        deadline: When an answer is of no use any more; infinity for never.
    """

    request_id: int
    index: int
    prompt: Sequence[int]
    sampling: SamplingSettings
    max_new_tokens: int
    eos_ids: frozenset[int] = frozenset()
    stop_ids: frozenset[int] = frozenset()
    structure: StructureSpec | None = None
    num_prompt_logprobs: int | None = None
    priority: int = 0
    arrived_at: float = 0.0
    deadline: float = float("inf")


class Ending(NamedTuple):
    """How and when a sequence ended.

    Attributes:
        reason: None if it failed.
        error: Why it failed, else None.
        num_cached_tokens: Tokens of the prompt that were in the cache from earlier requests.
        num_generated: Tokens generated, the one that ended the sequence included.
        num_preemptions: How often it lost its place in the cache and was computed again.
        started_at: When the first step that it took part in began; `ended_at` if none did.
        first_token_at: When its first token was chosen; `ended_at` if none was.
        ended_at: When it ended.
    """

    reason: FinishReason | None
    error: EnginehouseError | None
    num_cached_tokens: int
    num_generated: int
    num_preemptions: int
    started_at: float
    first_token_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Emitted:
    """What one step gave one sequence.

    Attributes:
        request_id: As in the work.
        index: As in the work.
        token: The token chosen, be it one that ends the sequence; None if there is only an ending.
        logprobs: Of the token, if asked for.
        prompt_logprobs: With the first token, if asked for: one for each token of the prompt but
            the first.
        ending: With the last token, or alone.
    """

    request_id: int
    index: int
    token: int | None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: Sequence[TokenLogprobs] | None = None
    ending: Ending | None = None


DeliverTokens = Callable[[Sequence[Emitted]], None]
