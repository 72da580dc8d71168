"""How a load of Generate reaches the server: a stream for each request, or a call.

Requests are bytes already; what is not needed on the way of every token is left out.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc

from enginehouse.v1.generate_pb2 import FINISH_REASON_CANCELLED, GeneratedSequence
from enginehouse.v1.inference_service_pb2 import GenerateResponse, GenerateStreamResponse
from enginehouse_client._base import channel_options
from enginehouse_client._status import Call, error_from_rpc
from enginehouse_client.errors import EnginehouseError, InternalError, NotReadyError

from .plan import Planned
from .recorder import Flight
from .settings import GenerateSettings

__all__ = ["Send", "open_channel", "sender"]

Send: TypeAlias = Callable[[Planned, Flight], Awaitable[bool]]
"""Sends a request and takes down its flight; returns whether it did not fail."""

_SERVICE = "/enginehouse.v1.InferenceService"


@asynccontextmanager
async def open_channel(settings: GenerateSettings) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of the run's own."""
    options = channel_options(settings.target, settings.max_message_bytes)
    async with grpc.aio.insecure_channel(settings.target, options) as channel:
        yield channel


def sender(channel: grpc.aio.Channel, settings: GenerateSettings) -> Send:
    """What sends requests as the settings say."""
    call = Call(settings.target, "", settings.timeout_s)
    send = _streamed(channel, call) if settings.is_streamed else _whole(channel, call)

    async def ending(planned: Planned, flight: Flight) -> bool:
        try:
            final = await send(planned, flight)
        except grpc.RpcError as failure:
            flight.failed(error_from_rpc(failure, call))
            return False
        if final is None:
            flight.cancelled()
            return True
        if (fault := _fault_of(final)) is not None:
            flight.failed(fault)
            return False
        flight.answered(final)
        return True

    return ending


_Attempt: TypeAlias = Callable[[Planned, Flight], Awaitable[GeneratedSequence | None]]


def _streamed(channel: grpc.aio.Channel, call: Call) -> _Attempt:
    method: grpc.aio.UnaryStreamMultiCallable[bytes, GenerateStreamResponse]
    method = channel.unary_stream(
        f"{_SERVICE}/GenerateStream", response_deserializer=GenerateStreamResponse.FromString
    )

    async def send(planned: Planned, flight: Flight) -> GeneratedSequence | None:
        stream = method(planned.payload, timeout=call.timeout_s)
        left = planned.cancel_after
        final = GeneratedSequence()
        while isinstance(message := await stream.read(), GenerateStreamResponse):
            for sequence in message.sequences:
                if num_tokens := len(sequence.token_ids):
                    flight.take(num_tokens)
                if sequence.finish_reason:
                    final = sequence
            left -= 1
            if not left and not final.finish_reason:
                stream.cancel()
                return None
        return final

    return send


def _whole(channel: grpc.aio.Channel, call: Call) -> _Attempt:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, GenerateResponse]
    method = channel.unary_unary(
        f"{_SERVICE}/Generate", response_deserializer=GenerateResponse.FromString
    )

    async def send(planned: Planned, flight: Flight) -> GeneratedSequence | None:
        response = await method(planned.payload, timeout=call.timeout_s)
        final = response.sequences[0] if response.sequences else GeneratedSequence()
        flight.take_whole(len(final.token_ids))
        return final

    return send


def _fault_of(final: GeneratedSequence) -> EnginehouseError | None:
    """What is wrong with an answer that the server ended without a status that says so."""
    if final.finish_reason == FINISH_REASON_CANCELLED:
        return NotReadyError(
            "the server ended the sequence before it was done", code=grpc.StatusCode.UNAVAILABLE
        )
    if not final.finish_reason:
        return InternalError(
            "the answer ended without a finish reason", code=grpc.StatusCode.INTERNAL
        )
    return None
