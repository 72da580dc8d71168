"""Prompts to tokens and settings to what sampling takes: the slow part of a request's arrival.

Blocking: runs off the event loop.
"""

import secrets
from dataclasses import replace

from enginehouse_server.errors import InvalidRequestError
from enginehouse_server.sampling import SamplingSettings
from enginehouse_server.text import ChatTemplate, Vocabulary

from .generate_checks import GeneratorTraits
from .generate_request import Chat, GenerateRequest, Prompt, PromptTokens

__all__ = ["PromptReader", "end_tokens", "sampling_settings", "stop_tokens"]


class PromptReader:
    """A model's tokenizer and chat template. Any thread may call.

    Attributes:
        vocabulary: The tokenizer, both ways.
    """

    def __init__(self, vocabulary: Vocabulary, template: ChatTemplate | None) -> None:
        """Takes the tokenizer, and the template of a model that has one."""
        self.vocabulary, self._template = vocabulary, template

    def read(self, prompt: Prompt) -> PromptTokens:
        """The tokens of a prompt, not more than it wants kept.

        Raises:
            InvalidRequestError: The chat template refuses the conversation.
        """
        found = self._read_whole(prompt)
        keep = prompt.truncate_tokens
        if keep is None or len(found.ids) <= keep:
            return found
        ids = found.ids[-keep:]
        return PromptTokens(ids, self.vocabulary.decode(ids, keep_special_tokens=True))

    def token_sequences(self, text: str) -> list[tuple[int, ...]]:
        """The ways in which a text may appear in a longer one: as a word of its own, and not."""
        encode = self.vocabulary.encode
        found = [encode(start + text, add_special_tokens=False) for start in ("", " ")]
        return sorted({tuple(ids) for ids in found if ids})

    def _read_whole(self, prompt: Prompt) -> PromptTokens:
        if prompt.token_ids is not None:
            ids = prompt.token_ids
            return PromptTokens(ids, self.vocabulary.decode(ids, keep_special_tokens=True))
        if prompt.chat is not None:
            text = self._render(prompt.chat)
            # The template writes the special tokens itself.
            return PromptTokens(self.vocabulary.encode(text, add_special_tokens=False), text)
        text = prompt.text or ""
        return PromptTokens(self.vocabulary.encode(text, add_special_tokens=True), text)

    def _render(self, chat: Chat) -> str:
        if self._template is None:
            raise InvalidRequestError("this model has no chat template", "prompt.chat")
        return self._template.render(
            chat.messages,
            add_generation_prompt=chat.add_generation_prompt,
            variables=chat.variables,
        )


def sampling_settings(
    request: GenerateRequest, traits: GeneratorTraits, reader: PromptReader
) -> SamplingSettings:
    """What sampling takes, with the model's defaults where the request says nothing."""
    wish, defaults = request.sampling, traits.defaults
    given = {
        name: getattr(defaults, name) if (value := getattr(wish, name)) is None else value
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    }
    settings = SamplingSettings(
        **given,
        presence_penalty=wish.presence_penalty or 0.0,
        frequency_penalty=wish.frequency_penalty or 0.0,
        logit_bias=dict(wish.logit_bias),
        bad_words=[ids for word in wish.bad_words for ids in reader.token_sequences(word)],
        seed=secrets.randbits(64) if wish.seed is None else wish.seed,
        num_logprobs=request.output.logprobs,
    )
    if not request.stopping.min_new_tokens:
        return settings
    return replace(
        settings,
        min_new_tokens=request.stopping.min_new_tokens,
        banned_until_min=end_tokens(request, traits) | stop_tokens(request),
    )


def end_tokens(request: GenerateRequest, traits: GeneratorTraits) -> frozenset[int]:
    """Tokens that end the request's sequences as the model's own end."""
    return frozenset() if request.stopping.ignore_eos else traits.eos_ids


def stop_tokens(request: GenerateRequest) -> frozenset[int]:
    """Tokens that end the request's sequences because it says so."""
    return frozenset(request.stopping.stop_token_ids)
