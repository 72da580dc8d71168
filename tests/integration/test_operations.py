"""The server as its operator sees it: faults, overload, health, metrics and the end."""

import asyncio
import json
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from enginehouse.v1 import inference_service_pb2 as inference_pb
from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceStub
from enginehouse_client import (
    AsyncClient,
    Client,
    DeadlineError,
    OverloadedError,
    RetryPolicy,
    UnloadableError,
)
from tests.fixtures.metrics import metrics_of, sum_of
from tests.fixtures.server import ServerProcess, enginehouse

MODEL = "tiny"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Metrics = dict[str, float]
ONCE = RetryPolicy(max_attempts=1)
SLOW = ("--max-batch", "1", "--threads", "1", "--lanes", "1")


async def until_computed(server: ServerProcess, num_inputs: int) -> None:
    async with asyncio.timeout(30):
        while sum_of(metrics_of(server), "enginehouse_batch_size_sum") < num_inputs:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_quiet(server: ServerProcess) -> Metrics:
    """The figures when nothing waits and no more requests end."""
    last = metrics_of(server)
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.2)
            found = metrics_of(server)
            is_still = not grown(last, found, "enginehouse_requests_total")
            if is_still and not sum_of(found, "enginehouse_queue_inputs"):
                return found
            last = found


def grown(before: Metrics, after: Metrics, name: str, **labels: str) -> float:
    return sum_of(after, name, **labels) - sum_of(before, name, **labels)


def is_error(found: object) -> bool:
    return isinstance(found, BaseException)


def health_of(server: ServerProcess, name: str) -> int:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(service=name)).status
        return status


@pytest.mark.parametrize("name", ["", MODEL])
def test_health_answers_for_the_server_and_for_each_model(server: ServerProcess, name: str) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING
        assert next(stub.Watch(health_pb2.HealthCheckRequest(service=name))).status == SERVING


def test_health_knows_no_other_name(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {
        "enginehouse.v1.InferenceService",
        "enginehouse.v1.ModelService",
        "grpc.health.v1.Health",
    } <= services


def test_metrics_count_what_was_asked(server: ServerProcess, client: Client) -> None:
    before = metrics_of(server)
    for _ in range(5):
        client.classify(MODEL, ["one", "two"])
    after = metrics_of(server)
    labels = {"model": MODEL, "rpc": "Classify", "code": "OK"}
    assert grown(before, after, "enginehouse_requests_total", **labels) == 5
    assert grown(before, after, "enginehouse_input_phase_seconds_count", phase="compute") == 10
    assert grown(before, after, "enginehouse_batch_size_sum") == 10
    assert grown(before, after, "enginehouse_tokens_total") > 0
    assert sum_of(after, "enginehouse_queue_inputs") == 0
    assert sum_of(after, "enginehouse_model_state", state="ready") == 1


async def test_what_is_late_is_not_computed(repository: Path) -> None:
    with ServerProcess(repository, *SLOW) as server:
        async with AsyncClient(server.address, retry=ONCE) as client:
            await client.classify(MODEL, "hello")
            before = metrics_of(server)
            calls = (client.classify(MODEL, "dog " * 80, timeout_s=0.1) for _ in range(400))
            found = await asyncio.gather(*calls, return_exceptions=True)
        num_answered = sum(not isinstance(f, Exception) for f in found)
        assert all(isinstance(f, DeadlineError | OverloadedError) for f in found if is_error(f))
        assert num_answered < 400, "the server is too fast for this test"
        after = await until_quiet(server)
        computed = grown(before, after, "enginehouse_batch_size_sum")
        # Some have begun for callers that gave up meanwhile.
        assert num_answered <= computed < num_answered + 40


async def test_a_full_queue_refuses_and_says_when_to_come_again(repository: Path) -> None:
    with ServerProcess(repository, "--max-queue", "2") as server:
        async with AsyncClient(server.address, retry=ONCE) as client:
            calls = (client.classify(MODEL, "dog " * 20) for _ in range(200))
            found = await asyncio.gather(*calls, return_exceptions=True)
            refused = [f for f in found if isinstance(f, OverloadedError)]
            assert refused
            assert all(e.retry_after_s and e.retry_after_s > 0 for e in refused)
            assert len(refused) + sum(not isinstance(f, Exception) for f in found) == 200
            assert (await client.classify(MODEL, "hello")).results  # unharmed


async def test_cancelled_calls_are_not_computed_and_leave_nothing(repository: Path) -> None:
    with ServerProcess(repository, *SLOW) as server:
        async with AsyncClient(server.address) as client:
            await client.classify(MODEL, "hello")
            before = metrics_of(server)
            for _ in range(5):
                texts = ["dog " * 80] * 100
                calls = [asyncio.create_task(client.classify(MODEL, [t])) for t in texts]
                await asyncio.sleep(0.02)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            assert (await client.classify(MODEL, "hello")).results
        after = await until_quiet(server)
        computed = grown(before, after, "enginehouse_batch_size_sum")
        assert 1 <= computed < grown(before, after, "enginehouse_requests_total")
        assert sum_of(after, "enginehouse_queue_inputs") == 0


async def test_a_clean_stop_finishes_what_is_in_flight(repository: Path) -> None:
    with ServerProcess(repository, "--drain-delay-s", "1", *SLOW) as server:
        channel = grpc.aio.insecure_channel(server.address)
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        states = [(await watch.read()).status]
        async with AsyncClient(server.address, retry=ONCE) as client:
            calls = [asyncio.create_task(client.classify(MODEL, "dog " * 80)) for _ in range(300)]
            await asyncio.sleep(0.01)
            server.terminate()
            states.append((await watch.read()).status)
            assert not all(call.done() for call in calls), "nothing is in flight"
            late = await client.classify(MODEL, "still served while balancers look away")
            assert late.results
            assert all(found.results for found in await asyncio.gather(*calls))
        assert states == [SERVING, NOT_SERVING]
        assert await asyncio.to_thread(server.wait) == 0
        await channel.close()


async def test_a_stop_waits_for_a_slow_reader_of_a_stream(repository: Path) -> None:
    num_requests, texts = 400, [inference_pb.ClassifyInput(text="dog")] * 8
    request = inference_pb.ClassifyRequest(model=MODEL, inputs=texts)
    flags = ("--drain-delay-s", "0", "--max-queue", "10000", "--max-queue-s", "1000")
    with ServerProcess(repository, *flags) as server:
        # What is not read stays in the server, instead of in a window of the client's that grows.
        options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
        async with grpc.aio.insecure_channel(server.address, options) as channel:
            stub: Any = InferenceServiceStub(channel)
            stream = stub.ClassifyStream()
            for i in range(num_requests):
                await stream.write(inference_pb.ClassifyStreamRequest(id=str(i), request=request))
            await until_computed(server, 8 * num_requests)
            server.terminate()
            await asyncio.sleep(1.5)
            answered = {(await stream.read()).id for _ in range(num_requests)}
        assert answered == {str(i) for i in range(num_requests)}
        assert await asyncio.to_thread(server.wait) == 0


def test_a_second_signal_ends_the_server_at_once(repository: Path) -> None:
    with ServerProcess(repository, "--drain-delay-s", "50") as server:
        server.terminate()
        while health_of(server, "") == SERVING:
            time.sleep(0.01)
        server.terminate()
        began = time.monotonic()
        assert server.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - began < 10


def corrupt_weights(version: Path) -> None:
    file = next(p for p in version.glob("model.onnx*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def remove_tokenizer(version: Path) -> None:
    (version / "tokenizer/tokenizer.json").unlink()


def remove_manifest(version: Path) -> None:
    (version / "manifest.json").unlink()


def edit_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(version: Path) -> None:
        file = version / "manifest.json"
        document = json.loads(file.read_text(encoding="utf-8"))
        change(document)
        file.write_text(json.dumps(document), encoding="utf-8")

    return edit


def renamed(model: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.update(model=model)


def renumbered(version: int) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.update(version=version)


def other_answers(document: dict[str, Any]) -> None:
    for engine in document["engines"]:
        for probe in engine["probes"]:
            probe["logits"] = [x + 100 for x in probe["logits"]]


FAULTS = {
    "corrupt weights": (corrupt_weights, "SHA-256"),
    "no tokenizer": (remove_tokenizer, "cannot be read"),
    "half-written": (remove_manifest, "manifest.json is missing"),
    "manifest of another version": (
        edit_manifest(lambda d: d.update(manifest_version=99)),
        "manifest version 99",
    ),
    "manifest of another model": (edit_manifest(lambda d: d.update(model="x")), "must be <model>"),
    "manifest that lacks a field": (
        edit_manifest(lambda d: d.pop("labels", d.pop("limits"))),
        "lacks",
    ),
    "an engine that answers otherwise": (edit_manifest(other_answers), "away from those"),
    "an engine of another backend": (
        edit_manifest(lambda d: d["engines"][0].update(backend="abacus")),
        "backend: it needs abacus",
    ),
}


def test_what_cannot_be_served_is_reported_and_the_others_serve(
    repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository / MODEL, tmp_path / MODEL)
    for i, (spoil, _) in enumerate(FAULTS.values()):
        version = tmp_path / f"bad-{i}" / "1"
        shutil.copytree(repository / MODEL / "1", version)
        if version.exists():
            edit_manifest(renamed(f"bad-{i}"))(version)
        spoil(version)
    with ServerProcess(tmp_path) as server, Client(server.address, retry=ONCE) as client:
        assert client.classify(MODEL, "hello").results
        models = {m.name: m for m in client.list_models()}
        for i, (fault, (_, reason)) in enumerate(FAULTS.items()):
            found = models[f"bad-{i}"]
            assert found.state == "unloadable", fault
            assert reason in found.reason, (fault, found.reason)
        assert health_of(server, MODEL) == health_of(server, "") == SERVING
        assert health_of(server, "bad-0") == NOT_SERVING
        with pytest.raises(UnloadableError, match=r"is unloadable: .*SHA-256") as error:
            client.classify("bad-0", "hello")
        assert error.value.code is grpc.StatusCode.FAILED_PRECONDITION


def test_nothing_to_serve_is_an_exit_code_of_its_own(repository: Path, tmp_path: Path) -> None:
    empty = enginehouse("serve", "--repository", tmp_path, "--listen", "127.0.0.1:0")
    missing = enginehouse("serve", "--repository", tmp_path / "x", "--listen", "127.0.0.1:0")
    other = enginehouse(
        *("serve", "--repository", repository, "--model", "nobody", "--listen", "127.0.0.1:0")
    )
    assert [empty.returncode, missing.returncode, other.returncode] == [4, 4, 4]
    assert "cannot be read" in missing.stderr
    assert "has no model nobody; it has: tiny=1" in other.stderr
    assert "Traceback" not in empty.stderr + missing.stderr + other.stderr


def test_wrong_settings_end_with_2_and_name_every_fault(repository: Path) -> None:
    found = enginehouse(
        *("serve", "--repository", repository, "--max-queue", "0", "--listen", "here")
    )
    assert found.returncode == 2
    assert "--max-queue" in found.stderr
    assert "--listen" in found.stderr


def test_a_port_in_use_is_a_failure_with_its_name(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = enginehouse("serve", "--repository", repository, "--listen", f"127.0.0.1:{port}")
    assert found.returncode == 1
    assert str(port) in found.stderr
    assert "Traceback" not in found.stderr


def test_versions_and_their_labels_can_be_chosen(repository: Path, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        folder = tmp_path / MODEL / str(version)
        shutil.copytree(repository / MODEL / "1", folder)
        edit_manifest(renumbered(version))(folder)
    (tmp_path / MODEL / ".tmp-unfinished").mkdir()
    flags = ("--model", f"{MODEL}=1", "--model", f"{MODEL}=2")
    labels = ("--version-label", f"{MODEL}:stable=1", "--version-label", f"{MODEL}:next=3")
    with (
        ServerProcess(tmp_path, *flags, *labels) as server,
        Client(server.address) as client,
    ):
        assert f"{MODEL}:next=3 names a version that is not served" in server.log
        assert "stable" not in server.log
        assert client.classify(MODEL, "hello").version == 2
        assert client.classify(MODEL, "hello", version=1).version == 1
        assert client.classify(MODEL, "hello", version_label="stable").version == 1
        assert [m.version for m in client.list_models()] == [2, 1]
    newest_and_first = ("--model", MODEL, "--model", f"{MODEL}=1")
    cases: list[tuple[tuple[str, ...], list[int]]] = [((), [3]), (newest_and_first, [3, 1])]
    for models, served in cases:
        with ServerProcess(tmp_path, *models) as server, Client(server.address) as client:
            assert client.classify(MODEL, "hello").version == 3
            assert [m.version for m in client.list_models()] == served


def test_addresses_of_version_6_are_announced_as_they_are_called(repository: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 on its loopback interface")
    flags = ("--listen", "[::1]:0", "--http-listen", "[::1]:0")
    with ServerProcess(repository, *flags) as server, Client(server.address) as client:
        assert client.classify(MODEL, "hello").results
        assert sum_of(metrics_of(server), "enginehouse_model_state", state="ready") == 1


def test_limits_can_be_lowered_at_serve_time(repository: Path) -> None:
    flags = ("--max-tokens", "16", "--max-batch", "2", "--lanes", "2", "--threads", "2")
    with ServerProcess(repository, *flags) as server, Client(server.address) as client:
        limits = client.get_model(MODEL).limits
        assert (limits.max_tokens, limits.max_batch) == (16, 2)
        [found] = client.classify(MODEL, "dog " * 40, truncate=True).results
        assert found.num_tokens == 16
