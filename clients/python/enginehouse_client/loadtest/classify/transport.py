"""How a load test's requests reach the server: a call each, or all over one stream.

Requests are bytes already; what is not needed on the way of every request is left out: no metadata,
no retries, no plain-data answers.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import grpc

from enginehouse.v1.inference_service_pb2 import ClassifyResponse, ClassifyStreamResponse
from enginehouse_client._base import channel_options
from enginehouse_client._multiplexer import Answer, Multiplexer
from enginehouse_client._status import Call, error_from_rpc, error_from_status
from enginehouse_client.errors import DeadlineError

from .settings import LoadSettings

__all__ = ["Transport", "open_transport"]

_SERVICE = "/enginehouse.v1.InferenceService"
_MAX_IN_FLIGHT = 1 << 20  # the load bounds it


class Transport(Protocol):
    """Sends requests."""

    async def send(self, payload: bytes) -> ClassifyResponse:
        """The answer to a serialized request.

        Raises:
            EnginehouseError: If it failed.
        """
        ...


@asynccontextmanager
async def open_transport(settings: LoadSettings) -> AsyncIterator[Transport]:
    """A transport, with a connection of its own."""
    options = channel_options(settings.target, settings.max_message_bytes)
    call = Call(settings.target, "", settings.timeout_s)
    async with grpc.aio.insecure_channel(settings.target, options) as channel:
        if not settings.is_streamed:
            yield _Unary(channel, call)
            return
        multiplexer = _multiplexer(channel, call)
        multiplexer.open()
        try:
            yield _Streamed(multiplexer, call)
        finally:
            await multiplexer.close(wait_s=0.0)


class _Unary:
    """A call for each request."""

    def __init__(self, channel: grpc.aio.Channel, call: Call) -> None:
        self._call = call
        self._method: grpc.aio.UnaryUnaryMultiCallable[bytes, ClassifyResponse]
        self._method = channel.unary_unary(
            f"{_SERVICE}/Classify", response_deserializer=ClassifyResponse.FromString
        )

    async def send(self, payload: bytes) -> ClassifyResponse:
        """The answer to a serialized request."""
        try:
            return await self._method(payload, timeout=self._call.timeout_s)
        except grpc.RpcError as failure:
            raise error_from_rpc(failure, self._call) from failure


class _Streamed:
    """All requests over one stream, which has no deadlines of its own."""

    def __init__(
        self, multiplexer: Multiplexer[bytes, ClassifyStreamResponse, ClassifyResponse], call: Call
    ) -> None:
        self._multiplexer, self._call = multiplexer, call

    async def send(self, payload: bytes) -> ClassifyResponse:
        """The answer to a serialized request."""
        try:
            async with asyncio.timeout(self._call.timeout_s):
                return await self._multiplexer.ask(lambda id_: _framed(id_, payload))
        except TimeoutError as error:
            text = f"no answer on the stream within {self._call.timeout_s:g} s"
            raise DeadlineError(text, code=grpc.StatusCode.DEADLINE_EXCEEDED) from error


def _multiplexer(
    channel: grpc.aio.Channel, call: Call
) -> Multiplexer[bytes, ClassifyStreamResponse, ClassifyResponse]:
    method: grpc.aio.StreamStreamMultiCallable[bytes, ClassifyStreamResponse]
    method = channel.stream_stream(
        f"{_SERVICE}/ClassifyStream", response_deserializer=ClassifyStreamResponse.FromString
    )

    def read(reply: ClassifyStreamResponse) -> Answer[ClassifyResponse]:
        if reply.HasField("error"):
            return Answer(reply.id, error_from_status(reply.error, call))
        return Answer(reply.id, reply.response)

    return Multiplexer(method, read, call, _MAX_IN_FLIGHT)


def _framed(request_id: str, payload: bytes) -> bytes:
    # ClassifyStreamRequest(id=..., request=...) around a request that is serialized already.
    name = request_id.encode()
    return b"\x0a%c%b\x12%b%b" % (len(name), name, _varint(len(payload)), payload)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
