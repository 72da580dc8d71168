"""A device that is lost, and an engine that hangs: everybody is told, and the process ends."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from enginehouse_client import (
    AsyncClient,
    Client,
    DeviceLostError,
    NotReadyError,
    RetryPolicy,
    Stopping,
)
from tests.fixtures.faulty_server import FAULT, FaultyServer
from tests.fixtures.metrics import metrics_of, sum_of
from tests.integration.conftest import MODEL, WRITER, Writer

DEVICE_LOST = 3
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ONCE = RetryPolicy(max_attempts=1)
Kind = Literal["lost", "hang"]
# Long enough to look at the server while it says that it ends.
SLOWLY = ("--drain-delay-s", "2", "--hang-timeout-s", "0.5")
REASONS = {"lost": FAULT, "hang": "did not end within 0.5 s"}


def health_of(server: FaultyServer, name: str) -> int:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(service=name)).status
        return status


def check_the_end(server: FaultyServer, kind: Kind, model: str) -> None:
    """The model is down at once, the metrics and the log say why, and the process ends with 3."""
    assert health_of(server, model) == health_of(server, "") == NOT_SERVING
    figures = metrics_of(server)
    named = "hung" if kind == "hang" else kind
    assert sum_of(figures, "enginehouse_engine_faults_total", model=model, kind=named) == 1
    assert sum_of(figures, "enginehouse_model_state", model=model, state="ready") == 0
    assert server.wait() == DEVICE_LOST
    assert REASONS[kind] in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("kind", ["lost", "hang"])
async def test_a_classifier_whose_engine_is_gone_answers_all_and_ends(
    kind: Kind, repository: Path, tmp_path: Path
) -> None:
    with FaultyServer(repository, kind, tmp_path, *SLOWLY) as server:
        async with AsyncClient(server.address, retry=ONCE) as client:
            assert (await client.classify(MODEL, "hello")).results
            server.break_engines()
            calls = (client.classify(MODEL, f"text {i}") for i in range(50))
            found = await asyncio.gather(*calls, return_exceptions=True)
            # Those that come once the fault is known are refused; the others were waiting.
            assert all(isinstance(f, DeviceLostError | NotReadyError) for f in found), found
            assert any(isinstance(f, DeviceLostError) for f in found)
            assert all(REASONS[kind] in str(f) for f in found)
            with pytest.raises(NotReadyError, match=f"is draining: .*{REASONS[kind]}"):
                await client.classify(MODEL, "too late")
        check_the_end(server, kind, MODEL)


def _generate_until_refused(client: Client) -> Exception:
    stopping = Stopping(max_new_tokens=40, ignore_eos=True)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            list(client.generate_stream(WRITER, "hello", stopping=stopping))
        except (DeviceLostError, NotReadyError) as error:
            return error
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize("kind", ["lost", "hang"])
def test_a_generator_whose_engine_is_gone_answers_all_and_ends(
    kind: Kind, writer: Writer, tmp_path: Path
) -> None:
    with (
        FaultyServer(writer.repository, kind, tmp_path, *SLOWLY) as server,
        Client(server.address, retry=ONCE) as client,
    ):
        with ThreadPoolExecutor(4) as pool:
            failures = [pool.submit(_generate_until_refused, client) for _ in range(4)]
            time.sleep(0.2)
            server.break_engines()
        found = [failure.result(10) for failure in failures]
        assert any(isinstance(f, DeviceLostError) for f in found)
        assert all(REASONS[kind] in str(f) for f in found)
        with pytest.raises(NotReadyError, match=f"is draining: .*{REASONS[kind]}"):
            client.generate(WRITER, "too late")
        check_the_end(server, kind, WRITER)


def test_an_engine_that_hangs_does_not_hold_up_the_end_as_requests_would(
    repository: Path, tmp_path: Path
) -> None:
    flags = ("--drain-delay-s", "0", "--drain-timeout-s", "60", "--hang-timeout-s", "1")
    with FaultyServer(repository, "hang", tmp_path, *flags) as server:
        server.break_engines()
        with Client(server.address, retry=ONCE) as client, pytest.raises(DeviceLostError):
            client.classify(MODEL, "hello")
        began = time.monotonic()
        assert server.wait() == DEVICE_LOST
        assert time.monotonic() - began < 10
