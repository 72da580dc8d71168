from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from enginehouse_server.rpc.health import Health

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Rig:
    """A server that has nothing but health, and a client of it."""

    def __init__(self, health: Health, channel: grpc.aio.Channel) -> None:
        self.health = health
        self._stub: Any = health_pb2_grpc.HealthStub(channel)

    async def check(self, name: str) -> int:
        found = await self._stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        return int(found.status)

    def watch(self, name: str) -> Any:  # noqa: ANN401
        return self._stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=10)


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    server, health = grpc.aio.server(), Health()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Rig(health, channel)
    await server.stop(0)


async def next_of(watch: Any) -> int:  # noqa: ANN401
    return int((await watch.read()).status)


async def test_a_watcher_is_told_although_another_has_left(rig: Rig) -> None:
    await rig.health.set("topics", serving=True)
    leaving, staying = rig.watch("topics"), rig.watch("topics")
    assert [await next_of(leaving), await next_of(staying)] == [SERVING, SERVING]
    leaving.cancel()
    late = rig.watch("topics")  # the server has noticed by the time that this one is answered
    assert await next_of(late) == SERVING
    await rig.health.say_not_serving()
    assert [await next_of(staying), await next_of(late)] == [NOT_SERVING, NOT_SERVING]


async def test_only_a_change_is_told(rig: Rig) -> None:
    await rig.health.set("topics", serving=True)
    watch = rig.watch("topics")
    assert await next_of(watch) == SERVING
    await rig.health.set("topics", serving=True)
    await rig.health.set("other", serving=False)
    await rig.health.set("topics", serving=False)
    assert await next_of(watch) == NOT_SERVING


async def test_a_name_may_be_watched_before_there_is_one(rig: Rig) -> None:
    watch = rig.watch("topics")
    assert await next_of(watch) == SERVICE_UNKNOWN
    await rig.health.set("topics", serving=True)
    assert await next_of(watch) == SERVING


async def test_not_serving_is_for_good(rig: Rig) -> None:
    await rig.health.set("", serving=True)
    await rig.health.say_not_serving()
    await rig.health.set("", serving=True)
    assert await rig.check("") == NOT_SERVING


async def test_a_name_that_there_is_not_is_not_found(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="no service 'nobody'") as error:
        await rig.check("nobody")
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
