"""A session for many requests at once over one stream, each awaited by itself."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import grpc

from enginehouse.v1.inference_service_pb2 import ClassifyStreamRequest, ClassifyStreamResponse

from ._convert import answer_from_pb, request_to_pb
from ._multiplexer import Answer, Multiplexer
from ._status import Call
from .errors import DeadlineError, EnginehouseError
from .messages import Classification, ClassifyRequest
from .retry import Attempts

if TYPE_CHECKING:  # exists only in the stubs' .pyi
    from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

__all__ = ["ClassifyStream"]

_Multiplexer: TypeAlias = Multiplexer[ClassifyStreamRequest, ClassifyStreamResponse, Classification]


class ClassifyStream:
    """A session: requests and answers share one stream, answers come as they finish.

    async with client.classify_stream() as stream:
        answers = await asyncio.gather(*(stream.submit(request) for request in requests))

    Leaving it waits for the answers still due, no longer than the client's timeout; leaving it by
    an exception cancels them. A stream that broke stays broken: open another.

    Args:
        stub: Of the channel to use.
        call: The stream's target, id and longest wait for an answer.
        metadata: Sent when the stream opens.
        max_in_flight: Most requests unanswered at any time; further ones wait.
        new_attempts: Makes the attempts of one request.
    """

    def __init__(
        self,
        stub: "InferenceServiceAsyncStub",
        call: Call,
        metadata: tuple[tuple[str, str], ...],
        max_in_flight: int,
        new_attempts: Callable[[Call], Attempts],
    ) -> None:
        self._call, self._new_attempts = call, new_attempts
        self._multiplexer: _Multiplexer = Multiplexer(
            lambda messages: stub.ClassifyStream(messages, metadata=metadata),
            self._answer,
            call,
            max_in_flight,
        )

    async def __aenter__(self) -> Self:
        """The opened stream."""
        self._multiplexer.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the stream; without an exception, when what was submitted is answered."""
        await self._multiplexer.close(self._call.timeout_s if kind is None else 0.0)

    async def submit(
        self, request: ClassifyRequest, *, timeout_s: float | None = None
    ) -> Classification:
        """Sends a request and waits for its answer; to be called from many tasks at once.

        A request that the server refuses for a while is tried again, as the client's policy says.

        Args:
            request: What to classify.
            timeout_s: Longest time to wait, all attempts together; None is the client's.

        Raises:
            EnginehouseError: What this request failed with, or what broke the stream.
        """
        timeout_s = self._call.timeout_s if timeout_s is None else timeout_s
        call = self._call._replace(timeout_s=timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._submit(request, self._new_attempts(call))
        except TimeoutError:
            text = f"no answer from {call.target} on the stream within {timeout_s:g} s"
            raise DeadlineError(
                text, code=grpc.StatusCode.DEADLINE_EXCEEDED, request_id=call.request_id
            ) from None

    async def _submit(self, request: ClassifyRequest, attempts: Attempts) -> Classification:
        message = request_to_pb(request)
        while True:
            try:
                answer = await self._multiplexer.ask(
                    lambda request_id: ClassifyStreamRequest(id=request_id, request=message)
                )
            except EnginehouseError as error:
                wait_s = attempts.wait_after(error)
                if wait_s is None or self._multiplexer.is_broken:
                    raise
                await asyncio.sleep(wait_s)
            else:
                attempts.succeeded()
                return answer

    def _answer(self, response: ClassifyStreamResponse) -> Answer[Classification]:
        return Answer(*answer_from_pb(response, self._call.target))
