"""Asks the server's tokenizer: how long texts are, and which token ids are surely valid."""

import asyncio
from collections.abc import Iterable, Sequence

import grpc
import numpy as np
from numpy.typing import NDArray

from enginehouse.v1.generate_pb2 import Prompt
from enginehouse.v1.inference_service_pb2 import TokenizeRequest, TokenizeResponse
from enginehouse_client._status import Call, error_from_rpc
from enginehouse_client.errors import EnginehouseError
from enginehouse_client.loadtest.classify.texts import DEFAULT_TEXTS

from .settings import GenerateSettings

__all__ = ["ask_vocabulary", "count_tokens"]

_METHOD = "/enginehouse.v1.InferenceService/Tokenize"
_MAX_IN_FLIGHT = 16


async def count_tokens(channel: grpc.aio.Channel, settings: GenerateSettings) -> list[int]:
    """Tokens of each of the settings' prompts.

    Raises:
        EnginehouseError: If the server does not tokenize them.
    """
    return [len(ids) for ids in await _tokenize(channel, settings, settings.prompts)]


async def ask_vocabulary(
    channel: grpc.aio.Channel, settings: GenerateSettings
) -> NDArray[np.int32]:
    """Token ids to draw from, `[ids]`: the range of the settings, or those of sample texts.

    What the tokenizer puts before or behind every text is no part of it.

    Raises:
        EnginehouseError: If the server does not tell tokens.
    """
    if settings.vocabulary is not None:
        return np.arange(settings.vocabulary[0], settings.vocabulary[1] + 1, dtype=np.int32)
    try:
        tokenized = await _tokenize(channel, settings, DEFAULT_TEXTS)
    except EnginehouseError as error:
        raise type(error)(
            f"the server tells no token ids to draw from ({error}): give a range of valid ones with"
            " --vocab LOW..HIGH",
            code=error.code,
        ) from error
    around = {_only(ids[0] for ids in tokenized if ids), _only(ids[-1] for ids in tokenized if ids)}
    found = {token_id for ids in tokenized for token_id in ids} - around
    if len(found) < 2:
        raise EnginehouseError(
            f"the tokenizer of {settings.model} makes {len(found)} different tokens of sample"
            " texts, too few to draw from: give a range of valid ids with --vocab LOW..HIGH"
        )
    return np.array(sorted(found), dtype=np.int32)


def _only(values: Iterable[int]) -> int | None:
    different = set(values)
    return different.pop() if len(different) == 1 else None


async def _tokenize(
    channel: grpc.aio.Channel, settings: GenerateSettings, texts: Sequence[str]
) -> list[Sequence[int]]:
    method: grpc.aio.UnaryUnaryMultiCallable[TokenizeRequest, TokenizeResponse]
    method = channel.unary_unary(
        _METHOD,
        request_serializer=TokenizeRequest.SerializeToString,
        response_deserializer=TokenizeResponse.FromString,
    )
    call = Call(settings.target, "", settings.timeout_s)
    few = asyncio.Semaphore(_MAX_IN_FLIGHT)

    async def one(text: str) -> Sequence[int]:
        request = TokenizeRequest(
            model=settings.model, version=settings.version, prompt=Prompt(text=text)
        )
        async with few:
            response = await method(request, timeout=settings.timeout_s)
        return response.token_ids

    different = list(dict.fromkeys(texts))
    try:
        found = dict(zip(different, await asyncio.gather(*map(one, different)), strict=True))
    except grpc.RpcError as failure:
        raise error_from_rpc(failure, call) from failure
    return [found[text] for text in texts]
