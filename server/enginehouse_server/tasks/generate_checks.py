"""What a request to generate may say, checked before anything waits for it.

Knows nothing of how tokens are made or chosen: what it needs of the model is in the traits.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from enginehouse_server.errors import InvalidRequestError

from .generate_request import Chat, GenerateRequest, Output, Prompt, SamplingWish, Stopping

__all__ = [
    "MAX_LOGPROBS",
    "GeneratorTraits",
    "SamplingDefaults",
    "check_prompt",
    "check_request",
    "room_for_answer",
]

MAX_LOGPROBS = 20
_MAX_STOP_STRINGS, _MAX_STOP_TOKENS, _MAX_BAD_WORDS = 16, 64, 64
_MAX_STRING = 512  # characters of a stop string or bad word


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
    _check_sampling(request.sampling, traits)
    _check_stopping(request.stopping, traits)
    _check_output(request.output)


def check_prompt(prompt: Prompt, traits: GeneratorTraits) -> None:
    """Checks the prompt's form.

    Raises:
        InvalidRequestError: Names the field at fault.
    """
    if prompt.field == "prompt":
        _refuse("prompt", "is empty; set prompt.text, prompt.token_ids or prompt.chat")
    if prompt.text == "":
        _refuse("prompt.text", "is empty; give a text to continue")
    if prompt.token_ids is not None:
        if not prompt.token_ids:
            _refuse("prompt.token_ids", "is empty; give at least one token")
        _check_tokens("prompt.token_ids", prompt.token_ids, traits)
    if prompt.chat is not None:
        _check_chat(prompt.chat, traits)
    if prompt.truncate_tokens is not None:
        _check_range("prompt.truncate_tokens", prompt.truncate_tokens, 1, traits.max_tokens)


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


def _check_chat(chat: Chat, traits: GeneratorTraits) -> None:
    if not traits.accepts_chat:
        _refuse("prompt.chat", "is set, but this model has no chat template: use prompt.text")
    if not chat.messages:
        _refuse("prompt.chat.messages", "is empty; give at least one message")
    for i, message in enumerate(chat.messages):
        if not message.role:
            where = f"prompt.chat.messages[{i}].role"
            _refuse(where, 'is empty; say who speaks, such as "user"')


def _check_sampling(wish: SamplingWish, traits: GeneratorTraits) -> None:
    ranges: list[tuple[str, float | None, float, float]] = [
        ("temperature", wish.temperature, 0, 100),
        ("top_k", wish.top_k, 0, 2**31 - 1),
        ("min_p", wish.min_p, 0, 1),
        ("presence_penalty", wish.presence_penalty, -2, 2),
        ("frequency_penalty", wish.frequency_penalty, -2, 2),
        ("num_sequences", wish.num_sequences, 1, traits.max_sequences),
    ]
    for name, value, low, high in ranges:
        if value is not None:
            _check_range(f"sampling.{name}", value, low, high)
    top_p, penalty = wish.top_p, wish.repetition_penalty
    if top_p is not None and not 0 < top_p <= 1:
        _refuse("sampling.top_p", f"is {top_p:g}; it must be above 0 and at most 1")
    if penalty is not None and not (penalty > 0 and math.isfinite(penalty)):
        _refuse(
            "sampling.repetition_penalty",
            f"is {penalty:g}; it must be a number above 0, and 1 is none",
        )
    _check_tokens("sampling.logit_bias", wish.logit_bias, traits)
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
    _check_tokens("stopping.stop_token_ids", stopping.stop_token_ids, traits)


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


def _check_tokens(field: str, tokens: Iterable[int], traits: GeneratorTraits) -> None:
    for i, token in enumerate(tokens):
        if not 0 <= token < traits.vocab_size:
            where = f"{field}[{token if field.endswith('bias') else i}]"
            name = where if field.endswith("bias") else f"{where} is {token}, which"
            raise InvalidRequestError(
                f"{name} is no token of this model; tokens are 0 to {traits.vocab_size - 1}", where
            )


def _refuse(field: str, what: str) -> NoReturn:
    raise InvalidRequestError(f"{field} {what}", field)
