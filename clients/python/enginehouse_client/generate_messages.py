"""What calls that generate take and give, as plain data. Knows nothing of gRPC and protobuf."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = [
    "Chat",
    "ChatMessage",
    "Choices",
    "FinishReason",
    "GenerateTiming",
    "GeneratedSequence",
    "Generation",
    "GenerationPiece",
    "JsonSchema",
    "OutputOptions",
    "PromptInput",
    "Regex",
    "Sampling",
    "Stopping",
    "Structure",
    "TokenLogprob",
    "TokenizedPrompt",
    "Usage",
]

FinishReason = Literal["eos", "length", "stop", "cancelled", "unknown"]
"""Why a sequence ended; "unknown" is a reason that this client is too old for."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message: who speaks, usually "system", "user" or "assistant", and what."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, which the model's own template makes a prompt of.

    Attributes:
        messages: Oldest first, at least one.
        add_generation_prompt: Begin the assistant's answer; False continues the last message.
        template_variables: Further variables of the template, as JSON has them.
    """

    messages: Sequence[ChatMessage]
    add_generation_prompt: bool = True
    template_variables: Mapping[str, object] = field(default_factory=dict)


PromptInput: TypeAlias = str | Sequence[int] | Chat
"""A text, token ids that are taken as they are, or a conversation."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; where a field is None the model's own defaults count.

    Attributes:
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Only so many of the most likely tokens; 0 for all.
        top_p: Only the most likely tokens that together reach this probability.
        min_p: Only tokens of at least this share of the most likely one's probability.
        repetition_penalty: Makes tokens of prompt and answer less likely; 1 is none.
        presence_penalty: Taken off the logits of tokens that the answer has.
        frequency_penalty: Taken off once for each time that the answer has them.
        logit_bias: Added to the logits, by token.
        seed: Makes the choice repeatable; None is random.
        num_sequences: How many sequences to generate from the prompt.
        bad_words: Texts that must not appear.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    num_sequences: int | None = None
    bad_words: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a sequence ends, beside the model's own end.

    Attributes:
        max_new_tokens: Most new tokens; None is as many as fit.
        min_new_tokens: No end before so many.
        stop_strings: Texts that end it; the text ends before them.
        stop_token_ids: Tokens that end it.
        ignore_eos: Go on past the model's own end.
        include_stop_string: Return the stop string as part of the text.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    stop_strings: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_string: bool = False


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What the answer holds beside the text.

    Attributes:
        logprobs: Log-probabilities of the chosen tokens and of so many of the most likely ones.
        prompt_logprobs: The same for the prompt's tokens.
        echo: Begin the text with the prompt.
        token_ids: Return token ids too.
        keep_special_tokens: Keep special tokens in the text.
    """

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    token_ids: bool = False
    keep_special_tokens: bool = False


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The text is a JSON document that fits the schema: JSON, or what JSON is made from."""

    schema: str | Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Regex:
    """The whole text matches the pattern."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Choices:
    """The text is one of these, at least one."""

    texts: Sequence[str]


Structure: TypeAlias = JsonSchema | Regex | Choices
"""What the text must look like."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, how likely the model thought it, and the most likely ones instead, best first."""

    token_id: int
    text: str
    logprob: float
    top: "tuple[TokenLogprob, ...]" = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one sequence.

    Attributes:
        prompt_tokens: Of the prompt.
        cached_tokens: How many of them the cache had from earlier requests.
        generated_tokens: Generated, the one that ended the sequence included.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class GenerateTiming:
    """Where the time of one sequence went inside the server.

    Attributes:
        queue_ms: From the arrival of the request until the sequence's first step.
        prefill_ms: From there until its first token.
        ttft_ms: From the arrival until the first token.
        mean_itl_ms: Mean time between two tokens; None for a single one.
        total_ms: From the arrival until the last token.
        num_preemptions: How often it lost its place and was computed again.
    """

    queue_ms: float
    prefill_ms: float
    ttft_ms: float
    mean_itl_ms: float | None
    total_ms: float
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """A generated sequence, or what is new of it.

    Attributes:
        index: Which of the sequences it is, from 0.
        text: Never a part of a character.
        token_ids: If asked for.
        logprobs: One for each token, if asked for.
        finish_reason: Why it ended; None while it goes on.
        stop_string: The one that ended it.
        stop_token_id: The stop or end token that ended it.
        usage: With the finish reason.
        timing: With the finish reason.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None
    stop_string: str | None
    stop_token_id: int | None
    usage: Usage | None
    timing: GenerateTiming | None


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one request.

    Attributes:
        model: Name of the model that answered.
        version: Version of the model that answered.
        sequences: By index, each with all of its text.
        prompt_logprobs: One for each token of the prompt but the first, if asked for.
        request_id: The request's id, as the server's logs have it.
    """

    model: str
    version: int
    sequences: tuple[GeneratedSequence, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]
    request_id: str

    @property
    def text(self) -> str:
        """Of the first sequence."""
        return self.sequences[0].text


@dataclass(frozen=True, slots=True)
class GenerationPiece:
    """What is new of a request that is streamed; the fields are those of `Generation`.

    Attributes:
        model: Name of the model that answers.
        version: Version of the model that answers.
        sequences: What is new, at most one for each sequence; the last has its finish reason.
        prompt_logprobs: With the first piece, if asked for.
        request_id: The request's id, as the server's logs have it.
    """

    model: str
    version: int
    sequences: tuple[GeneratedSequence, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]
    request_id: str


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """The tokens of a prompt.

    Attributes:
        token_ids: Special tokens included.
        text: What was tokenized: for a chat, what the model's template made of it.
        max_tokens: Most tokens of prompt and answer together.
    """

    token_ids: tuple[int, ...]
    text: str
    max_tokens: int
