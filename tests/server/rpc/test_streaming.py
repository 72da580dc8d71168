"""The answers of a stream, written to a reader that a test paces."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_server.errors import InvalidRequestError
from enginehouse_server.rpc.call import Context
from enginehouse_server.rpc.in_flight import InFlight
from enginehouse_server.rpc.streaming import AnswerStream


class Caller:
    """The other end of a stream: what it sends, and what it has read."""

    def __init__(self, *ids: str) -> None:
        self.ids, self.read = ids, asyncio.Semaphore(0)
        self.answers: list[str] = []
        self.in_flight = InFlight()
        self.is_open = asyncio.Event()
        self.stream = AnswerStream(cast("Context", self), self.answer, self.in_flight)

    async def requests(self) -> AsyncIterator[pb.ClassifyStreamRequest]:
        for id_ in self.ids:
            yield pb.ClassifyStreamRequest(id=id_)
        await self.is_open.wait()

    async def answer(self, request: pb.ClassifyStreamRequest) -> pb.ClassifyStreamResponse:
        await asyncio.sleep(0.03 if request.id == "slow" else 0)
        return pb.ClassifyStreamResponse(id=request.id)

    async def write(self, message: pb.ClassifyStreamResponse) -> None:
        await self.read.acquire()
        self.answers.append(message.id)

    async def run(self) -> None:
        async with asyncio.timeout(10):
            await self.stream.run(self.requests())


async def test_answers_come_as_they_finish() -> None:
    caller = Caller("slow", "quick")
    caller.read = asyncio.Semaphore(9)
    caller.is_open.set()
    await caller.run()
    assert caller.answers == ["quick", "slow"]


async def test_a_request_is_in_flight_until_its_answer_is_written() -> None:
    caller = Caller("a", "b")
    running = asyncio.create_task(caller.run())
    await asyncio.sleep(0.05)  # both are computed, neither is read
    assert caller.in_flight._count == 2
    caller.read.release()
    await asyncio.sleep(0.05)
    assert caller.in_flight._count == 1
    caller.read.release()
    await asyncio.wait_for(caller.in_flight.wait_until_idle(10), 5)
    assert caller.answers == ["a", "b"]
    assert not running.done()  # it stays open, and counts for nothing
    caller.is_open.set()
    await running


async def test_a_caller_that_leaves_leaves_nothing_in_flight() -> None:
    caller = Caller("a", "slow")
    running = asyncio.create_task(caller.run())
    await asyncio.sleep(0.01)
    assert caller.in_flight._count == 2
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert caller.in_flight._count == 0


@pytest.mark.parametrize(("ids", "fault"), [(("",), "is empty"), (("a", "a"), "still unanswered")])
async def test_a_fault_of_the_protocol_ends_the_stream(ids: tuple[str, ...], fault: str) -> None:
    caller = Caller(*ids)
    caller.read = asyncio.Semaphore(9)
    with pytest.raises(InvalidRequestError, match=fault):
        await caller.run()
    assert caller.in_flight._count == 0
