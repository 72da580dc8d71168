import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from enginehouse_server.rpc.call import Context
from enginehouse_server.rpc.in_flight import InFlight

METHOD = "/test.Service/Method"


class Service:
    """Holds every call until its gate is set."""

    def __init__(self) -> None:
        self.in_flight, self.gate, self.entered = InFlight(), asyncio.Event(), asyncio.Event()

    async def answer(self, request: bytes, context: Context) -> bytes:
        self.in_flight.hold(context)
        self.entered.set()
        await self.gate.wait()
        return request

    async def is_idle_within(self, timeout_s: float) -> bool:
        await self.in_flight.wait_until_idle(timeout_s)
        return not self.in_flight._count


@asynccontextmanager
async def running(
    service: Service,
) -> AsyncIterator[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]:
    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Method": grpc.unary_unary_rpc_method_handler(service.answer)
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary(METHOD)
    await server.stop(0)


async def test_a_call_is_in_flight_until_it_was_answered() -> None:
    service = Service()
    async with running(service) as method:
        assert await service.is_idle_within(0)
        call = method(b"hello", timeout=10)
        await service.entered.wait()
        assert not await service.is_idle_within(0.01)
        service.gate.set()
        assert await call == b"hello"
        assert await service.is_idle_within(10)


async def test_a_call_whose_caller_has_left_is_no_longer_in_flight() -> None:
    service = Service()
    async with running(service) as method:
        call = method(b"hello", timeout=10)
        await service.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await service.is_idle_within(10)


async def test_all_must_have_ended() -> None:
    in_flight = InFlight()
    in_flight.begin()
    in_flight.begin()
    in_flight.end()
    waiting = asyncio.create_task(in_flight.wait_until_idle(10))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    in_flight.end()
    await asyncio.wait_for(waiting, 1)
