"""Requests made before the run, so that sending one costs as little as can be."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginehouse.v1.generate_pb2 import OutputOptions, Prompt, Sampling, Stopping, TokenIds
from enginehouse.v1.inference_service_pb2 import GenerateRequest, GenerateStreamRequest
from enginehouse_client.errors import InvalidRequestError

from .settings import GenerateSettings

__all__ = ["Planned", "check_lengths", "plan_random", "plan_texts"]

_MAX_ROUNDS = 100


class Planned(NamedTuple):
    """A request to send.

    Attributes:
        payload: Serialized.
        prompt_tokens: Tokens of its prompt.
        output_tokens: Most tokens that it asks for.
        cancel_after: Messages after which its stream is cancelled; 0 is never.
    """

    payload: bytes
    prompt_tokens: int
    output_tokens: int
    cancel_after: int


def check_lengths(settings: GenerateSettings, max_tokens: int) -> None:
    """Refuses lengths that could exceed what the model takes; those without bound cannot.

    Args:
        settings: What is to be sent.
        max_tokens: Most tokens of prompt and answer together.

    Raises:
        InvalidRequestError: If the longest prompt and answer do not fit.
    """
    prompt = 1 if settings.prompts else settings.prompt_tokens.max_tokens or 1
    output = settings.output_tokens.max_tokens or 1
    total = settings.shared_prefix_tokens + prompt + output
    if total > max_tokens:
        raise InvalidRequestError(
            f"prompts of up to {settings.shared_prefix_tokens + prompt} tokens and answers of up to"
            f" {output} are {total} together; {settings.model} takes {max_tokens}: lower"
            " --prompt-tokens, --output-tokens or --shared-prefix-tokens"
        )


def plan_random(
    settings: GenerateSettings, vocabulary: NDArray[np.int32], max_tokens: int
) -> list[Planned]:
    """Prompts of random tokens.

    Args:
        settings: Lengths and number; the seed makes the same requests again.
        vocabulary: Token ids to draw from, `[ids]`.
        max_tokens: Most tokens of prompt and answer together. Pairs of lengths that exceed it are
            drawn again.

    Raises:
        InvalidRequestError: If hardly any pair of lengths fits.
    """
    random = np.random.default_rng(settings.seed)
    prefix = random.choice(vocabulary, settings.shared_prefix_tokens)
    is_shared = random.random(settings.num_distinct) < settings.shared_fraction
    room = max_tokens - np.where(is_shared, len(prefix), 0)
    prompt_lengths, output_lengths = _fitting_lengths(settings, random, room)
    cancels = _cancels(settings, random, output_lengths)
    planned = []
    for length, output, shares, cancel_after in zip(
        prompt_lengths.tolist(), output_lengths.tolist(), is_shared, cancels, strict=True
    ):
        own = random.choice(vocabulary, length)
        ids = np.concatenate((prefix, own)) if shares else own
        prompt = Prompt(token_ids=TokenIds(ids=ids.tolist()))
        payload = _payload(settings, prompt, output)
        planned.append(Planned(payload, len(ids), output, cancel_after))
    return planned


def plan_texts(
    settings: GenerateSettings, lengths: Sequence[int], max_tokens: int
) -> list[Planned]:
    """The texts in an order that the seed shuffles, each once or as often as there is room for.

    Args:
        settings: Texts, and lengths of answers.
        lengths: Tokens of each text.
        max_tokens: Most tokens of prompt and answer together; answers without bound end there.

    Raises:
        InvalidRequestError: If a text and its answer do not fit.
    """
    random = np.random.default_rng(settings.seed)
    order = np.resize(
        random.permutation(len(lengths)), max(settings.num_distinct, len(lengths))
    ).tolist()
    outputs = settings.output_tokens.draw(random, len(order))
    is_bounded = settings.output_tokens.max_tokens is not None
    rooms = max_tokens - np.array([lengths[index] for index in order], dtype=np.int64)
    if (is_long := rooms < (outputs if is_bounded else 1)).any():
        index = order[int(np.argmax(is_long))]
        raise InvalidRequestError(
            f"prompt {index + 1} has {lengths[index]} tokens, and with answers of"
            f" {settings.output_tokens} tokens exceeds the {max_tokens} that {settings.model}"
            " takes: shorten it, or lower --output-tokens"
        )
    outputs = np.minimum(outputs, rooms)
    cancels = _cancels(settings, random, outputs)
    return [
        Planned(
            _payload(settings, Prompt(text=settings.prompts[index]), output),
            lengths[index],
            output,
            cancel_after,
        )
        for index, output, cancel_after in zip(order, outputs.tolist(), cancels, strict=True)
    ]


def _fitting_lengths(
    settings: GenerateSettings, random: np.random.Generator, room: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    prompts = settings.prompt_tokens.draw(random, len(room))
    outputs = settings.output_tokens.draw(random, len(room))
    for _ in range(_MAX_ROUNDS):
        is_long = prompts + outputs > room
        if not is_long.any():
            return prompts, outputs
        prompts[is_long] = settings.prompt_tokens.draw(random, int(is_long.sum()))
        outputs[is_long] = settings.output_tokens.draw(random, int(is_long.sum()))
    raise InvalidRequestError(
        f"prompts of {settings.prompt_tokens} and answers of {settings.output_tokens} tokens hardly"
        f" ever fit in {int(room.min())}, what {settings.model} takes"
        " (less a shared prefix): lower one of them"
    )


def _cancels(
    settings: GenerateSettings, random: np.random.Generator, outputs: NDArray[np.int64]
) -> Sequence[int]:
    """After how many messages each stream is cancelled: before its last, by its tokens."""
    after = random.integers(1, np.maximum(outputs, 2))
    is_cancelled = random.random(len(outputs)) < settings.cancel_fraction
    chosen: list[int] = np.where(is_cancelled, after, 0).tolist()
    return chosen


def _payload(settings: GenerateSettings, prompt: Prompt, output_tokens: int) -> bytes:
    request = GenerateRequest(
        model=settings.model,
        version=settings.version,
        prompt=prompt,
        sampling=Sampling(
            temperature=settings.temperature, top_p=settings.top_p, seed=settings.sampling_seed
        ),
        stopping=Stopping(max_new_tokens=output_tokens, ignore_eos=settings.ignore_eos),
        # How many tokens a message has is told by their ids alone.
        output=OutputOptions(token_ids=True),
    )
    if settings.is_streamed:
        return GenerateStreamRequest(request=request).SerializeToString()
    return request.SerializeToString()
