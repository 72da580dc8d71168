"""What every RPC does around its work, by a server with one method whose work a test sets."""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import grpc
import pytest
from google.rpc import status_pb2

from enginehouse_server.errors import InvalidRequestError, OverloadedError
from enginehouse_server.rpc.call import Call, Context, Part
from enginehouse_server.telemetry import Metrics

Work = Callable[[Call], Awaitable[None]]


class Service:
    """Answers with what it was sent, after the work; counts in metrics of its own."""

    def __init__(self, work: Work) -> None:
        self.metrics, self._work = Metrics(), work
        self.entered = asyncio.Event()

    async def answer(self, request: bytes, context: Context) -> bytes:
        self.entered.set()
        async with Call("Echo", context, self.metrics) as call:
            call.telemetry = self.metrics.of_classifier("topics", 1)
            await self._work(call)
            return request

    def count(self, name: str, code: str, **labels: str) -> float:
        wanted = {"rpc": "Echo", "code": code, **labels}
        return self.metrics.registry.get_sample_value(name, wanted) or 0.0

    async def until_counted(self, code: str) -> None:
        async with asyncio.timeout(10):
            while not self.count("enginehouse_rpcs_total", code):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        labels = {"model": "topics", "version": "1"}
        assert self.count("enginehouse_requests_total", code, **labels) == 1


@asynccontextmanager
async def running(
    service: Service,
) -> AsyncIterator["grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"]:
    server = grpc.aio.server()
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(service.answer)
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", methods),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary("/test.Service/Echo")
    await server.stop(0)


async def nothing(_: Call) -> None:
    """Answers at once."""


async def forever(_: Call) -> None:
    await asyncio.sleep(60)


def raising(error: Exception) -> Work:
    async def work(_: Call) -> None:
        raise error

    return work


async def test_an_answer_is_counted_and_returns_the_request_id() -> None:
    service = Service(nothing)
    async with running(service) as method:
        call = method(b"hello", timeout=10, metadata=(("x-request-id", "order-66"),))
        assert await call == b"hello"
        assert dict(await call.initial_metadata())["x-request-id"] == "order-66"
        await service.until_counted("OK")


@pytest.mark.parametrize("sent", ["", "with space", "x" * 129])
async def test_an_id_that_does_not_fit_into_a_log_line_is_replaced(sent: str) -> None:
    async with running(Service(nothing)) as method:
        call = method(b"hello", timeout=10, metadata=(("x-request-id", sent),))
        await call
        assert len(str(dict(await call.initial_metadata())["x-request-id"])) == 32


async def test_a_domain_error_becomes_a_status_with_details() -> None:
    service = Service(raising(InvalidRequestError("inputs is empty", "inputs")))
    async with running(service) as method:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await method(b"hello", timeout=10)
        await service.until_counted("INVALID_ARGUMENT")
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == "inputs is empty"
    trailing = dict(error.value.trailing_metadata())
    packed = status_pb2.Status.FromString(cast(bytes, trailing["grpc-status-details-bin"]))
    assert len(packed.details) == 2


async def test_an_unknown_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    service = Service(raising(ValueError("the password is swordfish")))
    async with running(service) as method:
        with pytest.raises(grpc.aio.AioRpcError) as error, caplog.at_level(logging.ERROR):
            await method(b"hello", timeout=10, metadata=(("x-request-id", "order-66"),))
        await service.until_counted("INTERNAL")
    assert error.value.details() == "internal error, request order-66"
    assert "swordfish" in caplog.text


async def test_a_caller_that_leaves_is_counted_as_such() -> None:
    service = Service(forever)
    async with running(service) as method:
        call = method(b"hello", timeout=10)
        await service.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await service.until_counted("CANCELLED")


@pytest.mark.parametrize("timeout_s", [0.05, 1.234])
async def test_a_deadline_that_expires_is_counted_as_such(timeout_s: float) -> None:
    service = Service(forever)
    async with running(service) as method:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await method(b"hello", timeout=timeout_s)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await service.until_counted("DEADLINE_EXCEEDED")


async def test_a_part_keeps_what_it_raises_and_the_call_goes_on() -> None:
    parts: list[Part] = []

    async def work(call: Call) -> None:
        for error in (OverloadedError("full", 1.0), None):
            with call.part() as part:
                parts.append(part)
                if error:
                    raise error

    async with running(Service(work)) as method:
        assert await method(b"hello", timeout=10) == b"hello"
    assert parts[0].status is not None
    assert parts[0].status.message == "full"
    assert parts[1].status is None


async def test_a_failed_call_lets_go_of_what_it_worked_on() -> None:
    """At once: the collector's full rounds are minutes apart in a server."""
    worked_on: list[weakref.ref[asyncio.Event]] = []

    async def work(_: Call) -> None:
        answer = asyncio.Event()
        worked_on.append(weakref.ref(answer))
        raise OverloadedError("the stream was not read", 1.0)

    gc.disable()
    try:
        async with running(Service(work)) as echo:
            for _ in range(3):
                with pytest.raises(grpc.RpcError):
                    await echo(b"x")
            async with asyncio.timeout(10):
                while any(reference() for reference in worked_on):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
    finally:
        gc.enable()


async def test_calls_that_fail_by_one_error_leave_each_other_alone() -> None:
    """Whoever expires with others is told by the same object, whose traceback grows with each."""
    shared, gate = OverloadedError("expired together", 1.0), asyncio.Event()
    num_waiting = 0

    async def work(_: Call) -> None:
        nonlocal num_waiting
        try:
            raise shared
        except OverloadedError:
            num_waiting += 1
            if num_waiting < 2:
                await gate.wait()  # its frame is in the traceback of the other's error
            raise

    async with running(Service(work)) as echo:
        first = asyncio.ensure_future(echo(b"x"))
        while not num_waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        with pytest.raises(grpc.RpcError, match="expired together"):
            await echo(b"x")
        await asyncio.sleep(0.05)  # until gRPC is done with it
        gate.set()
        with pytest.raises(grpc.RpcError, match="expired together"):
            async with asyncio.timeout(10):
                await first
