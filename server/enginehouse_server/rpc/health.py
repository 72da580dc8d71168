"""grpc.health.v1: what serves, for callers who ask and for those who watch.

grpcio's own servicer shares one condition among the watchers of a name and deletes it when the
first of them leaves, so that the others are never told anything again.
"""

import asyncio

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from .call import Context

__all__ = ["Health"]


class Health(HealthServicer):  # type: ignore[misc]  # its package has no types
    """The status of each name; "" is the server as a whole. Belongs to the event loop."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._is_final = False

    async def set(self, name: str, *, serving: bool) -> None:
        """Says whether a name serves; watchers are told."""
        if not self._is_final:
            self._statuses[name] = _status(serving)
            await self._tell()

    async def say_not_serving(self) -> None:
        """Says that nothing serves any more, for good."""
        self._is_final = True
        self._statuses = dict.fromkeys(self._statuses, _status(serving=False))
        await self._tell()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """The status of a name; NOT_FOUND for one that there is not."""
        status = self._statuses.get(request.service)
        if status is None:
            text = f"there is no service {request.service!r}; known: {sorted(self._statuses)}"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
        return HealthCheckResponse(status=status)  # pyright: ignore[reportArgumentType]

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:
        """The status of a name now and whenever it is another, until the caller leaves."""
        told: int | None = None
        while True:
            async with self._changed:
                while (status := self._status_of(request.service)) == told:
                    await self._changed.wait()
            # Not under the lock: a watcher that does not read must hold up nobody.
            response = HealthCheckResponse(status=status)  # pyright: ignore[reportArgumentType]
            await context.write(response)
            told = status

    def _status_of(self, name: str) -> int:
        unknown: int = HealthCheckResponse.SERVICE_UNKNOWN
        return self._statuses.get(name, unknown)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _status(serving: bool) -> int:
    status: int = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
    return status
