"""What a request to generate may say, checked before anything waits for it.

Knows nothing of how tokens are made or chosen: what it needs of the model is in the traits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from enginehouse_server.errors import InvalidRequestError

from .generate_request import Chat, GenerateRequest, Output, Prompt, SamplingWish, Stopping

__all__ = [
    "MAX_LOGPROBS",
    "GeneratorTraits",
    "SamplingDefaults",
    "check_answer_size",
    "check_length",
    "check_prompt",
    "check_request",
    "check_sampling",
    "room_for_answer",
]

MAX_LOGPROBS = 20
_MAX_STOP_STRINGS, _MAX_STOP_TOKENS, _MAX_BAD_WORDS = 16, 64, 64
_MAX_STRUCTURE = 1 << 16  # characters; more would take seconds to compile
_MAX_STRING = 512  # characters of a stop string or bad word
_MAX_CHARACTERS = 1 << 20  # of a prompt to be truncated: one to two seconds of tokenizing
_SCORED_BYTES = 14  # of a message, for a token with its short text
_MIN_PENALTY, _MAX_PENALTY = 0.01, 100.0  # a logit times these is a number still


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What counts where a request says nothing."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class GeneratorTraits:
    """What a decoder is, and what one request may ask of it.

    Attributes:
        vocab_size: Tokens are numbered below it.
        eos_ids: Tokens that end a sequence.
        accepts_chat: Whether it has a chat template.
        max_tokens: Most tokens of prompt and answer together.
        max_characters: Most characters that `max_tokens` tokens can have.
        max_waiting: Most sequences that wait for their first step.
        max_sequences: Most sequences from one prompt.
        max_running: Most sequences that run at once.
        max_step_tokens: Most tokens of one step.
        cache_tokens: Most tokens that all running sequences keep in the cache.
        defaults: Of sampling.
    """

    vocab_size: int
    eos_ids: frozenset[int]
    accepts_chat: bool
    max_tokens: int
    max_characters: int
    max_waiting: int
    max_sequences: int
    max_running: int
    max_step_tokens: int
    cache_tokens: int
    defaults: SamplingDefaults


def check_request(request: GenerateRequest, traits: GeneratorTraits) -> None:
    """Checks everything that can be checked before the prompt is tokens.

    Raises:
        InvalidRequestError: Names the field, its value and its range.
    """
    check_prompt(request.prompt, traits)
    check_sampling(request.sampling, traits.vocab_size, traits.max_sequences)
    _check_stopping(request.stopping, traits)
    _check_output(request.output)
    if request.structure is not None:
        size = len(request.structure.source)
        if size > _MAX_STRUCTURE:
            field = f"structure.{request.structure.kind}"
            _refuse(
                field, f"has {size} characters; at most {_MAX_STRUCTURE} are taken: simplify it"
            )


def check_prompt(prompt: Prompt, traits: GeneratorTraits) -> None:
    """Checks the prompt's form and its length, as far as that shows before it is tokens.

    Raises:
        InvalidRequestError: Names the field at fault.
    """
    if prompt.field == "prompt":
        _refuse("prompt", "is empty; set prompt.text, prompt.token_ids or prompt.chat")
    if prompt.text == "":
        _refuse("prompt.text", "is empty; give a text to continue")
    if prompt.truncate_tokens is not None:
        _check_range("prompt.truncate_tokens", prompt.truncate_tokens, 1, traits.max_tokens)
    if prompt.text is not None:
        check_length(prompt, len(prompt.text), traits)
    if prompt.token_ids is not None:
        _check_token_prompt(prompt.token_ids, prompt.truncate_tokens, traits)
    if prompt.chat is not None:
        _check_chat(prompt.chat, traits)
        num_characters = sum(len(message.content) for message in prompt.chat.messages)
        check_length(prompt, num_characters, traits)


def check_length(prompt: Prompt, num_characters: int, traits: GeneratorTraits) -> None:
    """Checks the length of a prompt's text before it costs the time to find its tokens.

    Raises:
        InvalidRequestError: It is too long.
    """
    has = f"has {num_characters} characters"
    if prompt.truncate_tokens is not None:
        if num_characters > _MAX_CHARACTERS:
            limit = f"a prompt to be truncated may have {_MAX_CHARACTERS}"
            _refuse(prompt.field, f"{has}; {limit}: send only the end of it")
    elif num_characters > traits.max_characters:
        _refuse(
            prompt.field,
            f"{has}, more than the {traits.max_characters} that {traits.max_tokens} tokens, the "
            "most that the model takes, can have: shorten it, or set prompt.truncate_tokens",
        )


def check_answer_size(num_prompt: int, num_new: int, request: GenerateRequest, limit: int) -> None:
    """Refuses log-probabilities that cannot fit the answer's one message.

    Args:
        num_prompt: Tokens of the prompt.
        num_new: Most new tokens of a sequence.
        request: What is asked.
        limit: Most bytes of a message.

    Raises:
        InvalidRequestError: They cannot.
    """
    output, num_scored = request.output, 0
    if output.prompt_logprobs is not None:
        num_scored += num_prompt * (1 + output.prompt_logprobs)
    if output.logprobs is not None:
        num_scored += request.sampling.num_sequences * num_new * (1 + output.logprobs)
    size = num_scored * _SCORED_BYTES
    if size > limit:
        field = "output.prompt_logprobs" if output.logprobs is None else "output.logprobs"
        _refuse(
            field,
            f"would make an answer of about {size} bytes of {num_scored} log-probabilities; a "
            f"message has at most {limit}: ask for fewer, lower stopping.max_new_tokens or "
            "sampling.num_sequences, or call GenerateStream",
        )


def room_for_answer(num_prompt: int, request: GenerateRequest, traits: GeneratorTraits) -> int:
    """Most new tokens of a sequence, once the prompt's tokens are counted.

    Raises:
        InvalidRequestError: The prompt is too long, or too long for as many as were asked for.
    """
    limit, wanted = traits.max_tokens, request.stopping.max_new_tokens
    field = request.prompt.field
    if not num_prompt:
        _refuse(field, "has no tokens; give a text to continue")
    if num_prompt >= limit:
        _refuse(
            field,
            f"has {num_prompt} tokens; the model takes at most {limit} with the answer, so at most "
            f"{limit - 1}: shorten it, or set prompt.truncate_tokens",
        )
    room = limit - num_prompt
    if wanted is not None and wanted > room:
        _refuse(
            "stopping.max_new_tokens",
            f"is {wanted} and the prompt has {num_prompt} tokens; together they may be {limit}: "
            f"ask for at most {room}, or leave it out for as many as fit",
        )
    if request.stopping.min_new_tokens > room:
        _refuse(
            "stopping.min_new_tokens",
            f"is {request.stopping.min_new_tokens} and the prompt has {num_prompt} tokens; "
            f"together they may be {limit}: ask for at most {room}",
        )
    return room if wanted is None else wanted


def _check_token_prompt(ids: Sequence[int], keep: int | None, traits: GeneratorTraits) -> None:
    """Costs no more than a prompt that can be served, however many ids there are."""
    if not ids:
        _refuse("prompt.token_ids", "is empty; give at least one token")
    if keep is None and len(ids) > traits.max_tokens:
        _refuse(
            "prompt.token_ids",
            f"has {len(ids)} tokens; the model takes at most {traits.max_tokens} with the answer, "
            f"so at most {traits.max_tokens - 1}: shorten it, or set prompt.truncate_tokens",
        )
    start = 0 if keep is None else max(0, len(ids) - keep)
    _check_tokens("prompt.token_ids", ids[start:], traits.vocab_size, start)


def _check_chat(chat: Chat, traits: GeneratorTraits) -> None:
    if not traits.accepts_chat:
        _refuse("prompt.chat", "is set, but this model has no chat template: use prompt.text")
    if not chat.messages:
        _refuse("prompt.chat.messages", "is empty; give at least one message")
    for i, message in enumerate(chat.messages):
        if not message.role:
            where = f"prompt.chat.messages[{i}].role"
            _refuse(where, 'is empty; say who speaks, such as "user"')


def check_sampling(wish: SamplingWish, vocab_size: int, max_sequences: int = 1) -> None:
    """Checks how tokens are to be chosen.

    Raises:
        InvalidRequestError: Names the field, its value and its range.
    """
    ranges: list[tuple[str, float | None, float, float]] = [
        ("temperature", wish.temperature, 0, 100),
        ("top_k", wish.top_k, 0, 2**31 - 1),
        ("min_p", wish.min_p, 0, 1),
        ("presence_penalty", wish.presence_penalty, -2, 2),
        ("frequency_penalty", wish.frequency_penalty, -2, 2),
        ("num_sequences", wish.num_sequences, 1, max_sequences),
    ]
    for name, value, low, high in ranges:
        if value is not None:
            _check_range(f"sampling.{name}", value, low, high)
    top_p, penalty = wish.top_p, wish.repetition_penalty
    if top_p is not None and not 0 < top_p <= 1:
        _refuse("sampling.top_p", f"is {top_p:g}; it must be above 0 and at most 1")
    if penalty is not None and not _MIN_PENALTY <= penalty <= _MAX_PENALTY:
        _refuse(
            "sampling.repetition_penalty",
            f"is {penalty:g}; it must be {_MIN_PENALTY:g} to {_MAX_PENALTY:g}, and 1 is none",
        )
    _check_tokens("sampling.logit_bias", wish.logit_bias, vocab_size)
    for token, bias in wish.logit_bias.items():
        _check_range(f"sampling.logit_bias[{token}]", bias, -100, 100)
    _check_strings("sampling.bad_words", wish.bad_words, _MAX_BAD_WORDS)


def _check_stopping(stopping: Stopping, traits: GeneratorTraits) -> None:
    most, least = stopping.max_new_tokens, stopping.min_new_tokens
    if most is not None:
        _check_range("stopping.max_new_tokens", most, 1, traits.max_tokens - 1)
    highest = traits.max_tokens - 1 if most is None else most
    _check_range("stopping.min_new_tokens", least, 0, highest)
    _check_strings("stopping.stop_strings", stopping.stop_strings, _MAX_STOP_STRINGS)
    _check_count("stopping.stop_token_ids", stopping.stop_token_ids, _MAX_STOP_TOKENS)
    _check_tokens("stopping.stop_token_ids", stopping.stop_token_ids, traits.vocab_size)


def _check_output(output: Output) -> None:
    for name in ("logprobs", "prompt_logprobs"):
        value: int | None = getattr(output, name)
        if value is not None:
            _check_range(f"output.{name}", value, 0, MAX_LOGPROBS)


def _check_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also when it is not a number
        at_least = f"at least {low:g}" if high >= 2**31 - 1 else f"{low:g} to {high:g}"
        shown = value if isinstance(value, int) else f"{value:g}"
        _refuse(field, f"is {shown}; it must be {at_least}")


def _check_strings(field: str, strings: Sequence[str], most: int) -> None:
    _check_count(field, strings, most)
    for i, string in enumerate(strings):
        if not string:
            _refuse(f"{field}[{i}]", "is empty; leave it out")
        if len(string) > _MAX_STRING:
            _refuse(
                f"{field}[{i}]",
                f"has {len(string)} characters; at most {_MAX_STRING} are taken: shorten it",
            )


def _check_count(field: str, items: Sequence[object], most: int) -> None:
    if len(items) > most:
        _refuse(field, f"has {len(items)} entries; a request takes at most {most}")


def _check_tokens(field: str, tokens: Iterable[int], vocab_size: int, start: int = 0) -> None:
    for i, token in enumerate(tokens, start):
        if not 0 <= token < vocab_size:
            where = f"{field}[{token if field.endswith('bias') else i}]"
            name = where if field.endswith("bias") else f"{where} is {token}, which"
            raise InvalidRequestError(
                f"{name} is no token of this model; tokens are 0 to {vocab_size - 1}", where
            )


def _refuse(field: str, what: str) -> NoReturn:
    raise InvalidRequestError(f"{field} {what}", field)
