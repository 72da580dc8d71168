"""A bidirectional stream on which requests are answered by id, as they finish."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_server.errors import InvalidRequestError

from .call import Context
from .in_flight import InFlight

__all__ = ["AnswerStream"]

_MAX_UNANSWERED = 1024  # requests; a stream with as many is read again when one is answered

Answer = Callable[[pb.ClassifyStreamRequest], Awaitable[pb.ClassifyStreamResponse]]


class AnswerStream:
    """Reads requests and writes answers of one call at the same time.

    A caller that does not read its answers is not read from either: answers wait in the place
    of the requests that they belong to.
    """

    def __init__(self, context: Context, answer: Answer, in_flight: InFlight) -> None:
        """Takes the call, what answers one request and never raises, and who counts them."""
        self._context, self._answer, self._in_flight = context, answer, in_flight
        self._unanswered: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(_MAX_UNANSWERED)
        self._answers: asyncio.Queue[pb.ClassifyStreamResponse | None] = asyncio.Queue()

    async def run(self, requests: AsyncIterator[pb.ClassifyStreamRequest]) -> None:
        """Answers until the caller has no more requests.

        Raises:
            InvalidRequestError: A request breaks the protocol; the stream ends.
        """
        reader = asyncio.create_task(self._read(requests))
        try:
            while (answer := await self._answers.get()) is not None:
                await self._context.write(answer)
                del self._unanswered[answer.id]
                self._in_flight.end()
                self._room.release()
            await reader
        finally:
            reader.cancel()
            for task in self._unanswered.values():
                task.cancel()
                self._in_flight.end()

    async def _read(self, requests: AsyncIterator[pb.ClassifyStreamRequest]) -> None:
        try:
            async for request in requests:
                self._check(request)
                await self._room.acquire()
                self._in_flight.begin()
                self._unanswered[request.id] = asyncio.create_task(self._answer_to(request))
            await asyncio.gather(*self._unanswered.values())
        finally:
            self._answers.put_nowait(None)  # after the last answer

    def _check(self, request: pb.ClassifyStreamRequest) -> None:
        if not request.id:
            raise InvalidRequestError("id is empty; give every request of a stream an id", "id")
        if request.id in self._unanswered:
            raise InvalidRequestError(
                f"id {request.id!r} belongs to a request that is still unanswered; choose another",
                "id",
            )

    async def _answer_to(self, request: pb.ClassifyStreamRequest) -> None:
        self._answers.put_nowait(await self._answer(request))
