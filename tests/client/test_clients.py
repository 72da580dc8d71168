"""Both clients against a real server; what only one of them has is in test_stream.py."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse.v1 import types_pb2
from enginehouse_client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    DeadlineError,
    EnginehouseError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    RetryPolicy,
    TextPair,
)
from tests.client.fake_server import FakeServer, status

QUICK = RetryPolicy(max_attempts=4, initial_backoff_s=0.001, max_backoff_s=0.002)

Caller = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Caller]:
    """Calls a method of a new client: call(name, *args, settings=..., **kwargs)."""

    def sync_call(
        name: str, *args: object, settings: dict[str, Any] | None = None, **kwargs: object
    ) -> object:
        with Client(server.target, **(settings or {})) as client:
            return getattr(client, name)(*args, **kwargs)

    async def async_call(
        name: str, *args: object, settings: dict[str, Any] | None = None, **kwargs: object
    ) -> object:
        async with AsyncClient(server.target, **(settings or {})) as client:
            return await getattr(client, name)(*args, **kwargs)

    if request.param == "sync":
        yield sync_call
    else:
        yield lambda *args, **kwargs: asyncio.run(async_call(*args, **kwargs))


def failing(error: Exception, times: int) -> Callable[[pb.ClassifyRequest], Awaitable[None]]:
    left = [times]

    async def step(_request: pb.ClassifyRequest) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise error

    return step


def test_classify_gives_plain_data(call: Caller) -> None:
    answer = call("classify", "topics", "one two three", request_id="r-1")
    assert (answer.model, answer.version, answer.request_id) == ("topics", 1, "r-1")
    (result,) = answer.results
    assert [(each.label, each.score, each.index) for each in result.labels] == [
        ("sports", 0.75, 1),
        ("one two three", 0.25, 0),
    ]
    assert (result.num_tokens, result.truncated) == (5, False)
    assert (result.timing.compute_ms, result.timing.batch_size) == (1.5, 4)


def test_everything_asked_for_is_sent(call: Caller, server: FakeServer) -> None:
    call(
        "classify",
        "topics",
        ["a", TextPair("b", "c")],
        version=3,
        priority=-2,
        top_k=1,
        activation="sigmoid",
        truncate=True,
        settings={"metadata": {"x-tenant": "blue"}},
    )
    sent = server.requests[0]
    assert [(each.text, each.text_pair) for each in sent.inputs] == [("a", ""), ("b", "c")]
    assert (sent.version, sent.priority, sent.top_k, sent.truncate) == (3, -2, 1, True)
    assert sent.activation == types_pb2.ACTIVATION_SIGMOID
    assert not sent.HasField("version_label")
    assert server.metadata[0]["x-tenant"] == "blue"
    assert len(str(server.metadata[0]["x-request-id"])) == 32


def test_what_is_left_out_is_absent(call: Caller, server: FakeServer) -> None:
    call("classify", "topics", "a", version_label="stable")
    sent = server.requests[0]
    assert sent.version_label == "stable"
    for field in ("version", "priority", "top_k"):
        assert not sent.HasField(field)
    assert not sent.inputs[0].HasField("text_pair")


def test_models_are_described(call: Caller, server: FakeServer) -> None:
    (model,) = call("list_models")
    assert call("get_model", "topics") == model
    assert (model.state, model.activation, model.limits.max_inputs) == ("ready", "softmax", 4)
    assert model.engine.certificate.reference == "transformers"
    assert model.engine.certificate.top1_agreement is None
    server.models[0].ClearField("engine")
    server.models[0].state = types_pb2.MODEL_STATE_UNLOADABLE
    (model,) = call("list_models")
    assert (model.state, model.engine) == ("unloadable", None)
    with pytest.raises(ModelNotFoundError):
        call("get_model", "other", 2)


def test_health(call: Caller) -> None:
    assert call("is_healthy") is True
    assert call("is_healthy", "topics") is True
    assert call("is_healthy", "cold") is False
    with pytest.raises(ModelNotFoundError):
        call("is_healthy", "other")


def test_a_server_that_is_full_is_asked_again(call: Caller, server: FakeServer) -> None:
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OverloadedError", 1)
    server.step = failing(full, 2)
    call("classify", "topics", "a", settings={"retry": QUICK}, request_id="r-7")
    assert [each["x-request-id"] for each in server.metadata] == ["r-7"] * 3


def test_it_gives_up_after_the_last_attempt(call: Caller, server: FakeServer) -> None:
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OverloadedError", 1)
    server.step = failing(full, 99)
    with pytest.raises(OverloadedError):
        call("classify", "topics", "a", settings={"retry": QUICK})
    assert len(server.requests) == 4


def test_a_wrong_request_is_not_tried_again(call: Caller, server: FakeServer) -> None:
    server.step = failing(
        status(grpc.StatusCode.INVALID_ARGUMENT, "empty", "InvalidRequestError"), 99
    )
    with pytest.raises(InvalidRequestError):
        call("classify", "topics", "", settings={"retry": QUICK})
    assert len(server.requests) == 1


def test_a_delay_beyond_the_deadline_is_not_waited_for(call: Caller, server: FakeServer) -> None:
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OverloadedError", 60_000)
    server.step = failing(full, 99)
    with pytest.raises(OverloadedError):
        call("classify", "topics", "a", timeout_s=5.0)
    assert len(server.requests) == 1


def test_no_answer_in_time(call: Caller, server: FakeServer) -> None:
    server.step = lambda _request: asyncio.sleep(30)
    with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
        call("classify", "topics", "a", timeout_s=0.05)


def test_a_cancelled_call_is_not_tried_again(call: Caller, server: FakeServer) -> None:
    server.step = failing(status(grpc.StatusCode.CANCELLED, "given up"), 99)
    with pytest.raises(ConnectionFailedError, match="given up"):
        call("classify", "topics", "a", settings={"retry": QUICK})
    assert len(server.requests) == 1


@pytest.mark.parametrize("request_id", ["", "with space", "ä", "new\nline", "x" * 129])
def test_an_id_that_the_server_would_replace_is_refused_here(
    call: Caller, server: FakeServer, request_id: str
) -> None:
    with pytest.raises(ValueError, match=r"request_id is .* printable ASCII"):
        call("classify", "topics", "a", request_id=request_id)
    assert not server.requests


def test_closing_fails_the_calls_of_other_threads(server: FakeServer) -> None:
    server.step = lambda _request: asyncio.sleep(30)
    client = Client(server.target, retry=QUICK)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.classify, "topics", "a")
        while not server.requests:
            time.sleep(0.001)
        client.close()
        with pytest.raises(ConnectionFailedError, match="closed") as error:
            running.result(10)
    assert error.value.code is grpc.StatusCode.CANCELLED
    assert len(server.requests) == 1


def test_closing_fails_a_call_that_waits_for_its_next_attempt(server: FakeServer) -> None:
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OverloadedError", 300)
    server.step = failing(full, 99)
    client = Client(server.target)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.classify, "topics", "a")
        while not server.requests:
            time.sleep(0.001)
        time.sleep(0.1)
        client.close()
        with pytest.raises(ConnectionFailedError, match="was closed"):
            waiting.result(10)


async def test_closing_fails_the_calls_of_other_tasks(aio_server: FakeServer) -> None:
    aio_server.step = lambda _request: asyncio.sleep(30)
    client = AsyncClient(aio_server.target, retry=QUICK)
    running = asyncio.create_task(client.classify("topics", "a"))
    while not aio_server.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await client.close()
    with pytest.raises(ConnectionFailedError, match="was closed"):
        await running
    assert len(aio_server.requests) == 1


async def test_a_cancelled_task_stays_cancelled_although_the_client_closes(
    aio_server: FakeServer,
) -> None:
    aio_server.step = lambda _request: asyncio.sleep(30)
    client = AsyncClient(aio_server.target)
    running = asyncio.create_task(client.classify("topics", "a"))
    while not aio_server.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    running.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_closed_client_says_so(aio_server: FakeServer) -> None:
    client = Client(aio_server.target)
    client.close()
    with pytest.raises(ConnectionFailedError, match="was closed: make another"):
        client.classify("topics", "a")
    with pytest.raises(ConnectionFailedError, match="was closed: make another"):
        list(client.classify_stream([]))
    aio_client = AsyncClient(aio_server.target)
    await aio_client.close()
    with pytest.raises(ConnectionFailedError, match="was closed: make another"):
        await aio_client.list_models()


@pytest.mark.parametrize("inputs", [5, [b"bytes"]])
def test_what_is_no_text_is_refused_here(call: Caller, inputs: object) -> None:
    with pytest.raises(TypeError):
        call("classify", "topics", inputs)


def test_an_unknown_activation_is_refused_here(call: Caller) -> None:
    with pytest.raises(ValueError, match="softmax"):
        call("classify", "topics", "a", activation="relu")


async def test_an_unreachable_server_is_not_healthy() -> None:
    with Client("127.0.0.1:1") as client:
        assert client.is_healthy() is False
    async with AsyncClient("127.0.0.1:1", retry=QUICK) as client:
        assert await client.is_healthy() is False
        with pytest.raises(ConnectionFailedError):
            await client.classify("topics", "a")


def test_both_clients_offer_the_same_calls() -> None:
    def calls(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert calls(Client) == calls(AsyncClient)


def test_errors_have_one_root(call: Caller, server: FakeServer) -> None:
    server.step = failing(ValueError("a bug"), 1)
    with pytest.raises(EnginehouseError):
        call("classify", "topics", "a")
