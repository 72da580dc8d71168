"""What a request to generate asks, and what comes of it: plain data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from enginehouse_server.scheduler.generate_work import StructureSpec, TokenLogprobs
from enginehouse_server.text import Message

__all__ = [
    "Chat",
    "EndReason",
    "GenerateRequest",
    "Output",
    "Prompt",
    "PromptTokens",
    "SamplingWish",
    "ScoredToken",
    "SequenceEnd",
    "SequencePiece",
    "Stopping",
    "StructureSpec",
]

EndReason = Literal["eos", "length", "stop", "cancelled"]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation for the model's chat template."""

    messages: Sequence[Message]
    add_generation_prompt: bool = True
    variables: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to continue: exactly one of text, tokens and chat is not None.

    Attributes:
        text: Gets the special tokens that the model begins with.
        token_ids: Taken as they are.
        chat: Messages.
        truncate_tokens: Keep only so many of the last tokens; None for all.
    """

    text: str | None = None
    token_ids: Sequence[int] | None = None
    chat: Chat | None = None
    truncate_tokens: int | None = None

    @property
    def field(self) -> str:
        """Path of the form that is set."""
        names = ("text", "token_ids", "chat")
        return next((f"prompt.{n}" for n in names if getattr(self, n) is not None), "prompt")


@dataclass(frozen=True, slots=True)
class SamplingWish:
    """What a request says of sampling; None where the model's defaults count."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    num_sequences: int = 1
    bad_words: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a sequence ends, beside the model's own end; None for as many tokens as fit."""

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop_strings: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_string: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """What the answer holds beside the text; of logprobs, how many tokens beside the chosen."""

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    token_ids: bool = False
    keep_special_tokens: bool = False


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A prompt to continue. Times are seconds of the monotonic clock.

    `max_answer_bytes` bounds an answer that is one message; None for one that comes in pieces.
    """

    prompt: Prompt
    arrived_at: float
    deadline: float = float("inf")
    priority: int = 0
    sampling: SamplingWish = field(default_factory=SamplingWish)
    stopping: Stopping = field(default_factory=Stopping)
    output: Output = field(default_factory=Output)
    structure: StructureSpec | None = None
    max_answer_bytes: int | None = None


class PromptTokens(NamedTuple):
    """A prompt as the model gets it: its tokens, and the text that they were made from."""

    ids: Sequence[int]
    text: str


class ScoredToken(NamedTuple):
    """A token with its text, how likely it was, and the most likely ones likewise."""

    token: int
    text: str
    logprob: float
    top: Sequence["ScoredToken"] = ()

    @classmethod
    def from_logprobs(
        cls, token: int, found: TokenLogprobs, text_of: Callable[[int], str]
    ) -> "ScoredToken":
        """Puts the texts to what was computed."""
        top = tuple(cls(other, text_of(other), logprob) for other, logprob in found.top)
        return cls(token, text_of(token), found.logprob, top)


class SequenceEnd(NamedTuple):
    """How a sequence ended; times are seconds.

    Attributes:
        reason: Why.
        stop_string: The one that ended it.
        stop_token: The stop or end token that ended it.
        num_prompt_tokens: Of the prompt.
        num_cached_tokens: Of those, found in the cache.
        num_generated: Tokens of the sequence, the one that ended it included.
        num_preemptions: How often it was computed again.
        queue_s: From arrival to its first step.
        prefill_s: From there to its first token.
        total_s: From arrival to its end.
    """

    reason: EndReason
    stop_string: str | None
    stop_token: int | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated: int
    num_preemptions: int
    queue_s: float
    prefill_s: float
    total_s: float

    @property
    def ttft_s(self) -> float:
        """From arrival to the first token."""
        return self.queue_s + self.prefill_s

    @property
    def mean_itl_s(self) -> float | None:
        """Mean time between two tokens; None for a single one."""
        if self.num_generated < 2:
            return None
        return (self.total_s - self.ttft_s) / (self.num_generated - 1)


@dataclass(frozen=True, slots=True)
class SequencePiece:
    """What is new of one sequence.

    Attributes:
        index: Which sequence.
        text: No part of a character.
        token_ids: Those that were asked for.
        logprobs: One a token, if asked for.
        end: With the last piece.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[ScoredToken]
    end: SequenceEnd | None
