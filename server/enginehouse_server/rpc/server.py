"""The gRPC server: services, health, reflection and transport settings."""

import asyncio
from time import monotonic

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from enginehouse.v1 import inference_service_pb2, model_service_pb2
from enginehouse.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server
from enginehouse.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server
from enginehouse_server.config import GrpcConfig, join_address, split_address
from enginehouse_server.repository import Catalog
from enginehouse_server.telemetry import Metrics

from .call import TolerantRegistry
from .health import Health
from .in_flight import InFlight
from .inference import Inference
from .models import Models

__all__ = ["GrpcServer"]

_DAY_S = 86_400.0
_LAST_ANSWERS_S = 0.25  # for calls that are not counted as in flight, and for the last bytes


class GrpcServer:
    """Serves until stopped. Belongs to the event loop."""

    def __init__(self, config: GrpcConfig, catalog: Catalog, metrics: Metrics) -> None:
        """Makes the server; it does not listen yet."""
        self._server = grpc.aio.server(options=_options(config))
        self._health = Health()
        self._in_flight = InFlight()
        registry = TolerantRegistry(self._server)
        add_InferenceServiceServicer_to_server(
            Inference(
                catalog,
                metrics,
                self._in_flight,
                config.stream_stall_timeout_s,
                config.max_message_bytes,
            ),
            registry,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        )
        add_ModelServiceServicer_to_server(
            Models(catalog, metrics),
            registry,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [
            inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
            model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        ]
        reflection.enable_server_reflection(names, self._server)
        self._address = config.listen

    async def start(self) -> str:
        """Starts to listen, not serving yet as far as health is concerned.

        Returns:
            The address, with the real port.

        Raises:
            OSError: The address cannot be listened on.
        """
        host, _ = split_address(self._address)
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}: {error}") from error
        await self.set_health("", serving=False)
        await self._server.start()
        return join_address(host, port)

    async def set_health(self, name: str, *, serving: bool) -> None:
        """Says whether a model, or the whole server (""), serves; watchers are told."""
        await self._health.set(name, serving=serving)

    async def say_not_serving(self) -> None:
        """Says that nothing serves any more, for good."""
        await self._health.say_not_serving()

    async def stop(self, timeout_s: float) -> None:
        """Takes no new calls, and lets requests in flight take `timeout_s`.

        Calls that stay open with nothing to answer (health watchers, idle streams) are then ended.
        """
        end = monotonic() + timeout_s
        # Of two stops whose times are up together, gRPC's second uses what the first has freed:
        # the one that waits must not end by itself, and the one that ends all calls must not wait.
        stopping = asyncio.create_task(self._server.stop(timeout_s + _DAY_S))
        await self._in_flight.wait_until_idle(timeout_s)
        await asyncio.wait({stopping}, timeout=min(max(end - monotonic(), 0.0), _LAST_ANSWERS_S))
        await self._server.stop(None)
        await stopping


def _options(config: GrpcConfig) -> list[tuple[str, int]]:
    options = {
        "grpc.max_receive_message_length": config.max_message_bytes,
        "grpc.max_send_message_length": config.max_message_bytes,
        "grpc.keepalive_time_ms": int(1000 * config.keepalive_time_s),
        "grpc.keepalive_timeout_ms": int(1000 * config.keepalive_timeout_s),
        "grpc.http2.min_ping_interval_without_data_ms": int(1000 * config.min_ping_interval_s),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.so_reuseport": 0,  # a second server on the port must fail, not share it
    }
    if config.max_connection_age_s:
        options["grpc.max_connection_age_ms"] = int(1000 * config.max_connection_age_s)
        options["grpc.max_connection_age_grace_ms"] = int(1000 * config.drain_timeout_s)
    return list(options.items())
