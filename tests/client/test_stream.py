import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_client import (
    AsyncClient,
    Classification,
    ClassifyRequest,
    Client,
    ConnectionFailedError,
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
)
from tests.client.fake_server import FakeServer, status

QUICK = RetryPolicy(max_attempts=4, initial_backoff_s=0.001, max_backoff_s=0.002)
BAD = status(grpc.StatusCode.INVALID_ARGUMENT, "empty", "InvalidRequestError", field="inputs[0]")
FULL = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OverloadedError", 1)


def request(text: str) -> ClassifyRequest:
    return ClassifyRequest("topics", text)


def text_of(answer: Classification) -> str:
    return answer.results[0].labels[1].label


async def shuffled(sent: pb.ClassifyRequest) -> None:
    """Later requests are answered sooner; some fail."""
    number = int(sent.inputs[0].text)
    await asyncio.sleep(0.02 * (1 - number / 100))
    if number % 10 == 0:
        raise BAD


async def test_each_submitter_gets_its_own_answer(aio_server: FakeServer) -> None:
    aio_server.step = shuffled
    async with AsyncClient(aio_server.target) as client, client.classify_stream() as stream:
        answers = await asyncio.gather(
            *(stream.submit(request(str(i))) for i in range(100)), return_exceptions=True
        )
    for i, answer in enumerate(answers):
        if i % 10 == 0:
            assert isinstance(answer, InvalidRequestError)
            assert answer.field == "inputs[0]"
        else:
            assert isinstance(answer, Classification)
            assert text_of(answer) == str(i)


async def test_requests_in_flight_are_bounded(aio_server: FakeServer) -> None:
    running = most = 0

    async def step(_sent: pb.ClassifyRequest) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    aio_server.step = step
    async with (
        AsyncClient(aio_server.target) as client,
        client.classify_stream(max_in_flight=5) as stream,
    ):
        await asyncio.gather(*(stream.submit(request(str(i))) for i in range(60)))
    assert most <= 5


async def test_a_cancelled_submitter_harms_no_other(aio_server: FakeServer) -> None:
    aio_server.step = lambda _sent: asyncio.sleep(0.05)
    async with (
        AsyncClient(aio_server.target) as client,
        client.classify_stream(max_in_flight=2) as stream,
    ):
        leaving = [asyncio.create_task(stream.submit(request("x"))) for _ in range(2)]
        await asyncio.sleep(0.01)
        for task in leaving:
            task.cancel()
        assert text_of(await stream.submit(request("7"))) == "7"


async def test_a_request_that_is_refused_for_a_while_is_tried_again(
    aio_server: FakeServer,
) -> None:
    async def step(_sent: pb.ClassifyRequest) -> None:
        if len(aio_server.requests) < 3:
            raise FULL

    aio_server.step = step
    async with (
        AsyncClient(aio_server.target, retry=QUICK) as client,
        client.classify_stream() as stream,
    ):
        assert text_of(await stream.submit(request("7"))) == "7"
    assert len(aio_server.requests) == 3


async def test_a_request_has_its_own_deadline(aio_server: FakeServer) -> None:
    aio_server.step = lambda sent: asyncio.sleep(0.3 if sent.inputs[0].text == "slow" else 0)
    async with AsyncClient(aio_server.target) as client, client.classify_stream() as stream:
        with pytest.raises(DeadlineError, match=r"0\.02 s"):
            await stream.submit(request("slow"), timeout_s=0.02)
        assert text_of(await stream.submit(request("7"))) == "7"


async def test_a_broken_stream_fails_what_is_due_and_what_comes(aio_server: FakeServer) -> None:
    aio_server.step = lambda _sent: asyncio.sleep(30)
    aio_server.end_stream_after = 3
    async with AsyncClient(aio_server.target) as client, client.classify_stream() as stream:
        answers = await asyncio.gather(
            *(stream.submit(request(str(i))) for i in range(10)), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {ConnectionFailedError}
        with pytest.raises(ConnectionFailedError):
            await stream.submit(request("7"))


async def test_leaving_waits_for_what_is_due(aio_server: FakeServer) -> None:
    aio_server.step = lambda _sent: asyncio.sleep(0.05)
    async with AsyncClient(aio_server.target) as client:
        async with client.classify_stream() as stream:
            task = asyncio.create_task(stream.submit(request("7")))
            await asyncio.sleep(0.01)
        assert text_of(await task) == "7"
        with pytest.raises(ConnectionFailedError, match="ended"):
            await stream.submit(request("8"))


async def test_leaving_by_an_exception_cancels_what_is_due(aio_server: FakeServer) -> None:
    aio_server.step = lambda _sent: asyncio.sleep(30)
    due: list[asyncio.Task[Classification]] = []
    async with AsyncClient(aio_server.target) as client:
        with suppress(KeyError):
            async with client.classify_stream() as stream:
                due.append(asyncio.create_task(stream.submit(request("7"))))
                await asyncio.sleep(0.05)
                raise KeyError
        with pytest.raises(ConnectionFailedError, match="closed"):
            await due[0]


async def test_a_stream_must_be_entered(aio_server: FakeServer) -> None:
    async with AsyncClient(aio_server.target) as client:
        with pytest.raises(ConnectionFailedError, match="not open"):
            await client.classify_stream().submit(request("7"))


def test_sync_answers_carry_their_ids(server: FakeServer) -> None:
    server.step = shuffled
    with Client(server.target) as client:
        requests = ((f"id-{i}", request(str(i))) for i in range(100))
        answers = dict(client.classify_stream(requests, max_in_flight=8))
    assert len(answers) == 100
    for i in range(100):
        outcome = answers[f"id-{i}"]
        if i % 10 == 0:
            assert isinstance(outcome, InvalidRequestError)
            assert outcome.request_id == f"id-{i}"
        else:
            assert isinstance(outcome, Classification)
            assert text_of(outcome) == str(i)


def test_sync_takes_no_more_requests_than_may_be_in_flight(server: FakeServer) -> None:
    taken = 0

    def requests() -> Iterator[tuple[str, ClassifyRequest]]:
        nonlocal taken
        for taken in range(1, 1000):
            yield str(taken), request("7")

    with Client(server.target) as client:
        answers = client.classify_stream(requests(), max_in_flight=4)
        next(answers)
        assert taken <= 6
        answers.close()  # type: ignore[attr-defined]


def test_sync_tells_what_the_caller_s_iterable_raised(server: FakeServer) -> None:
    def requests() -> Iterator[tuple[str, ClassifyRequest]]:
        yield "1", request("7")
        raise KeyError("mine")

    with Client(server.target) as client, pytest.raises(KeyError, match="mine"):
        list(client.classify_stream(requests()))


def test_sync_stream_has_a_deadline_and_leaves_no_thread(server: FakeServer) -> None:
    server.step = lambda _sent: asyncio.sleep(30)
    before = threading.active_count()
    with Client(server.target) as client, pytest.raises(DeadlineError):
        list(client.classify_stream([("1", request("7"))] * 9, max_in_flight=2, timeout_s=0.1))
    for thread in threading.enumerate():
        if "consume" in thread.name:
            thread.join(5)
    assert threading.active_count() <= before + 1


def test_sync_overload_is_an_answer_not_an_exception(server: FakeServer) -> None:
    async def step(_sent: pb.ClassifyRequest) -> None:
        raise FULL

    server.step = step
    with Client(server.target) as client:
        (answer,) = client.classify_stream([("1", request("7"))])
    assert isinstance(answer.outcome, OverloadedError)
    assert answer.outcome.retry_after_s == 0.001
