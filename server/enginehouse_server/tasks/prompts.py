"""Prompts to tokens and settings to what sampling takes: the slow part of a request's arrival.

Blocking: runs off the event loop.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace

from enginehouse_server.errors import InvalidRequestError
from enginehouse_server.sampling import SamplingSettings
from enginehouse_server.text import ChatTemplate, Vocabulary

from .generate_checks import GeneratorTraits, check_length
from .generate_request import Chat, GenerateRequest, Prompt, PromptTokens

__all__ = ["PromptReader", "end_tokens", "sampling_settings", "stop_tokens"]


class PromptReader:
    """A model's tokenizer and chat template. Any thread may call.

    Attributes:
        vocabulary: The tokenizer, both ways.
    """

    def __init__(
        self, vocabulary: Vocabulary, template: ChatTemplate | None, traits: GeneratorTraits
    ) -> None:
        """Takes the tokenizer, the template of a model that has one, and what the model is."""
        self.vocabulary, self._template, self._traits = vocabulary, template, traits

    def read(self, prompt: Prompt) -> PromptTokens:
        """The tokens of a prompt, not more than it wants kept.

        Raises:
            InvalidRequestError: The chat template refuses the conversation, or the prompt has
                tokens that the model does not know.
        """
        found = self._kept(self._read_whole(prompt), prompt.truncate_tokens)
        self._check_known(found.ids, prompt.field)
        return found

    def token_sequences(self, text: str, field: str) -> list[tuple[int, ...]]:
        """The ways in which a text may appear in a longer one: as a word of its own, and not.

        Raises:
            InvalidRequestError: The text of `field` has tokens that the model does not know.
        """
        encode = self.vocabulary.encode
        found = [encode(start + text, add_special_tokens=False) for start in ("", " ")]
        for ids in found:
            self._check_known(ids, field)
        return sorted({tuple(ids) for ids in found if ids})

    def _kept(self, found: PromptTokens, keep: int | None) -> PromptTokens:
        if keep is None or len(found.ids) <= keep:
            return found
        ids = found.ids[-keep:]
        return PromptTokens(ids, self.vocabulary.decode(ids, keep_special_tokens=True))

    def _check_known(self, ids: Sequence[int], field: str) -> None:
        # Some tokenizers have more tokens than their model.
        limit = self._traits.vocab_size
        if max(ids, default=0) < limit:
            return
        unknown = next(token for token in ids if token >= limit)
        text = self.vocabulary.decode((unknown,), keep_special_tokens=True)
        raise InvalidRequestError(
            f"{field} has token {unknown} ({text!r}), which the tokenizer knows and the model does "
            f"not; its tokens are 0 to {limit - 1}: leave that text out",
            field,
        )

    def _read_whole(self, prompt: Prompt) -> PromptTokens:
        if prompt.token_ids is not None:
            # Only the end of what is to be truncated was checked.
            ids = list(prompt.token_ids[-(prompt.truncate_tokens or 0) :])
            return PromptTokens(ids, self.vocabulary.decode(ids, keep_special_tokens=True))
        if prompt.chat is not None:
            text = self._render(prompt.chat)
            check_length(prompt, len(text), self._traits)
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
        bad_words=[
            ids
            for i, word in enumerate(wish.bad_words)
            for ids in reader.token_sequences(word, f"sampling.bad_words[{i}]")
        ],
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
