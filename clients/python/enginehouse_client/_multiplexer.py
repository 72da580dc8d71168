"""Many questions and answers over one stream, told apart by id. Knows nothing of what they say."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

import grpc

from ._status import Call, error_from_rpc
from .errors import ConnectionFailedError, EnginehouseError

__all__ = ["Answer", "Multiplexer", "StreamRpc"]

_QuestionT = TypeVar("_QuestionT")
_ReplyT_co = TypeVar("_ReplyT_co", covariant=True)
_ReplyT = TypeVar("_ReplyT")
_OutcomeT = TypeVar("_OutcomeT")


class Answer(NamedTuple, Generic[_OutcomeT]):
    """What a message of the server says: which question it answers, and how that went."""

    id: str
    outcome: _OutcomeT | EnginehouseError


class StreamRpc(Protocol[_ReplyT_co]):
    """A running call of grpc.aio, as far as it is needed here."""

    def __aiter__(self) -> AsyncIterator[_ReplyT_co]:
        """The server's messages."""
        ...

    def cancel(self) -> bool:
        """Ends the call at once."""
        ...


class Multiplexer(Generic[_QuestionT, _ReplyT, _OutcomeT]):
    """Asks over one stream from many tasks at once.

    Args:
        open_rpc: Starts the call that sends what an iterator gives.
        read: Says what a message of the server answers.
        call: Whom the stream goes to, for errors.
        max_in_flight: Most questions unanswered at any time; further ones wait.
    """

    def __init__(
        self,
        open_rpc: Callable[[AsyncIterator[_QuestionT]], StreamRpc[_ReplyT]],
        read: Callable[[_ReplyT], Answer[_OutcomeT]],
        call: Call,
        max_in_flight: int,
    ) -> None:
        self._open_rpc, self._read, self._call = open_rpc, read, call
        self._ids = itertools.count(1)
        self._slots = asyncio.Semaphore(max_in_flight)
        self._outgoing: asyncio.Queue[_QuestionT | None] = asyncio.Queue()
        self._pending: dict[str, asyncio.Future[_OutcomeT]] = {}
        self._broken_by: EnginehouseError | None = self._closed("is not open")

    @property
    def is_broken(self) -> bool:
        """Whether nothing more can be asked."""
        return self._broken_by is not None

    def open(self) -> None:
        """Starts the call and the task that reads from it."""
        self._broken_by = None
        self._rpc = self._open_rpc(self._questions())
        self._reader = asyncio.create_task(self._read_all())

    async def close(self, wait_s: float | None) -> None:
        """Ends the stream when all is answered, but after `wait_s` at the latest; None is never."""
        self._outgoing.put_nowait(None)
        try:
            await asyncio.wait({self._reader}, timeout=wait_s)
        finally:
            self._rpc.cancel()
            await self._reader

    async def ask(self, question: Callable[[str], _QuestionT]) -> _OutcomeT:
        """Sends the question that goes with an id, and waits for its answer.

        Raises:
            EnginehouseError: What the question was answered with, or what broke the stream.
        """
        await self._slots.acquire()  # given back by the answer, even if nobody waits for it
        if self._broken_by:
            self._slots.release()
            raise self._broken_by
        question_id = str(next(self._ids))
        future: asyncio.Future[_OutcomeT] = asyncio.get_running_loop().create_future()
        self._pending[question_id] = future
        # Not written from here: gRPC cancels the whole call if the task that writes is cancelled.
        self._outgoing.put_nowait(question(question_id))
        return await future

    async def _questions(self) -> AsyncIterator[_QuestionT]:
        while (question := await self._outgoing.get()) is not None:
            yield question

    async def _read_all(self) -> None:
        try:
            async for reply in self._rpc:
                self._settle(self._read(reply))
            self._broken_by = self._closed("has ended")
        except grpc.RpcError as failure:
            self._broken_by = error_from_rpc(failure, self._call)
        except asyncio.CancelledError:
            self._broken_by = self._closed("was closed")
        for question_id in tuple(self._pending):
            self._settle(Answer(question_id, self._broken_by))

    def _settle(self, answer: Answer[_OutcomeT]) -> None:
        future = self._pending.pop(answer.id, None)
        if future is None:
            return  # an id that was not asked: nobody waits
        self._slots.release()
        if future.done():
            return  # whoever asked has left
        if isinstance(answer.outcome, EnginehouseError):
            future.set_exception(answer.outcome)
        else:
            future.set_result(answer.outcome)

    def _closed(self, how: str) -> ConnectionFailedError:
        text = f"the stream to {self._call.target} {how}"
        return ConnectionFailedError(
            text, code=grpc.StatusCode.CANCELLED, request_id=self._call.request_id
        )
