"""Generation as its operator sees it: callers that leave or stall, overload, faults, the end."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from enginehouse.v1 import generate_pb2 as generate_pb
from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceStub
from enginehouse_client import (
    AsyncClient,
    Client,
    DeadlineError,
    NotReadyError,
    OverloadedError,
    RetryPolicy,
    Sampling,
    Stopping,
    UnloadableError,
)
from tests.fixtures.metrics import metrics_of, sum_of, wait_until_idle
from tests.fixtures.server import ServerProcess, enginehouse
from tests.integration.conftest import MODEL, WRITER, Writer

PROMPT = "The quick brown fox"
LONG = Stopping(max_new_tokens=480, ignore_eos=True)
ONCE = RetryPolicy(max_attempts=1)


async def wasted_tokens(server: ServerProcess) -> float:
    """What was computed for callers that had left; it is told of with the next step."""
    async with AsyncClient(server.address) as client:
        await client.generate(WRITER, "x", stopping=Stopping(max_new_tokens=2, ignore_eos=True))
    await wait_until_idle(server)
    return sum_of(metrics_of(server), "enginehouse_tokens_wasted_total", reason="abandoned")


async def test_leaving_a_stream_frees_its_sequences(writer_server: ServerProcess) -> None:
    had_wasted = await wasted_tokens(writer_server)
    before = metrics_of(writer_server)
    sampling = Sampling(num_sequences=3)
    async with AsyncClient(writer_server.address) as client:
        for _ in range(6):
            async for _ in client.generate_stream(WRITER, PROMPT, sampling=sampling, stopping=LONG):
                break
        await wait_until_idle(writer_server)
    after = metrics_of(writer_server)
    assert await wasted_tokens(writer_server) > had_wasted
    cancelled = {"rpc": "GenerateStream", "code": "CANCELLED"}
    name = "enginehouse_requests_total"
    assert sum_of(after, name, **cancelled) - sum_of(before, name, **cancelled) == 6


async def test_cancelled_calls_leave_nothing_behind(writer_server: ServerProcess) -> None:
    before = await wasted_tokens(writer_server)
    async with AsyncClient(writer_server.address) as client:
        for pause_s in (0.0, 0.002, 0.02):
            calls = [
                asyncio.create_task(client.generate(WRITER, f"{PROMPT} {i}", stopping=LONG))
                for i in range(20)
            ]
            await asyncio.sleep(pause_s)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await wait_until_idle(writer_server)
        assert await wasted_tokens(writer_server) > before


async def test_a_connection_that_breaks_frees_its_sequences(writer_server: ServerProcess) -> None:
    before = await wasted_tokens(writer_server)
    client = AsyncClient(writer_server.address)
    streams = [client.generate_stream(WRITER, PROMPT, stopping=LONG) for _ in range(6)]
    for stream in streams[:3]:
        await anext(stream)
    await client.close()
    await wait_until_idle(writer_server)
    assert await wasted_tokens(writer_server) > before
    for stream in streams:
        await stream.aclose()


async def test_a_deadline_ends_what_runs_and_what_waits(writer_server: ServerProcess) -> None:
    async with AsyncClient(writer_server.address, retry=ONCE) as client:
        calls = (
            client.generate(WRITER, f"{PROMPT} {i}", stopping=LONG, timeout_s=0.05)
            for i in range(20)
        )
        found = await asyncio.gather(*calls, return_exceptions=True)
        late = [f for f in found if isinstance(f, DeadlineError)]
        refused = [f for f in found if isinstance(f, OverloadedError)]
        assert late
        assert len(late) + len(refused) == 20
    await wait_until_idle(writer_server)


def stall(address: str, num_sequences: int) -> grpc.RpcError:
    """Asks for a stream and does not read it; gives what it ended with once it is read."""
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    request = pb.GenerateRequest(
        model=WRITER,
        prompt=generate_pb.Prompt(text=PROMPT),
        sampling=generate_pb.Sampling(num_sequences=num_sequences, temperature=1.0, seed=1),
        stopping=generate_pb.Stopping(max_new_tokens=480, ignore_eos=True),
        output=generate_pb.OutputOptions(logprobs=20),
    )
    with grpc.insecure_channel(address, options) as channel:
        stream = InferenceServiceStub(channel).GenerateStream(
            pb.GenerateStreamRequest(request=request)
        )
        next(stream)
        time.sleep(3)
        with pytest.raises(grpc.RpcError) as error:
            list(stream)
        return error.value


async def test_a_reader_that_stalls_is_ended_and_harms_nobody(
    writer_server: ServerProcess,
) -> None:
    stalling = asyncio.create_task(asyncio.to_thread(stall, writer_server.address, 4))
    async with AsyncClient(writer_server.address) as client:
        while not stalling.done():
            stopping = Stopping(max_new_tokens=8)
            await asyncio.wait_for(client.generate(WRITER, "x", stopping=stopping), 5)
    error: Any = await stalling
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "was not read for 1 s" in error.details()
    await wait_until_idle(writer_server)


async def test_a_full_queue_refuses_and_says_when_to_come_again(writer: Writer) -> None:
    flags = ("--model", WRITER, "--max-running", "1", "--max-waiting", "2")
    with ServerProcess(writer.repository, *flags) as server:
        async with AsyncClient(server.address, retry=ONCE) as client:
            calls = (client.generate(WRITER, f"{PROMPT} {i}", stopping=LONG) for i in range(12))
            found = await asyncio.gather(*calls, return_exceptions=True)
        refused = [f for f in found if isinstance(f, OverloadedError)]
        assert refused
        assert all(e.retry_after_s and e.retry_after_s > 0 for e in refused)
        assert len(refused) + sum(not isinstance(f, Exception) for f in found) == 12


async def test_metrics_tell_of_every_sequence(writer_server: ServerProcess) -> None:
    before = metrics_of(writer_server)
    async with AsyncClient(writer_server.address) as client:
        stopping = Stopping(max_new_tokens=10, ignore_eos=True)
        await client.generate(
            WRITER, [*range(40, 75)], stopping=stopping, sampling=Sampling(num_sequences=2)
        )
    await wait_until_idle(writer_server)
    after = metrics_of(writer_server)

    def grown(name: str, **labels: str) -> float:
        name = f"enginehouse_{name}"
        return sum_of(after, name, **labels) - sum_of(before, name, **labels)

    assert grown("requests_total", model=WRITER, rpc="Generate", code="OK") == 1
    assert grown("sequences_ended_total", reason="length") == 2
    assert grown("ttft_seconds_count") == grown("generate_queue_seconds_count") == 2
    assert grown("itl_seconds_count") == 2 * 9
    assert grown("sequence_tokens_sum") == 20
    assert grown("prompt_tokens_total") + grown("prefix_cache_hit_tokens_total") >= 35
    assert grown("generated_tokens_total") >= 2 * 9
    assert grown("step_seconds_count") >= 10
    assert sum_of(after, "enginehouse_cache_blocks", state="free") > 0


async def test_a_stop_finishes_what_runs(writer: Writer) -> None:
    with ServerProcess(writer.repository, "--model", WRITER, "--drain-delay-s", "0.1") as server:
        async with AsyncClient(server.address, retry=ONCE) as client:
            stream = client.generate_stream(WRITER, PROMPT, stopping=LONG)
            await anext(stream)
            server.terminate()
            ends = [s.finish_reason async for piece in stream for s in piece.sequences]
            assert ends[-1] == "length"
        assert await asyncio.to_thread(server.wait) == 0


async def test_what_outlasts_the_drain_ends_as_cancelled(writer: Writer) -> None:
    flags = ("--model", WRITER, "--drain-delay-s", "0.05", "--drain-timeout-s", "0.05")
    with ServerProcess(writer.repository, *flags, "--max-running", "1") as server:
        async with AsyncClient(server.address, retry=ONCE) as client:
            streams = [
                client.generate_stream(WRITER, f"{PROMPT} {i}", stopping=LONG) for i in range(8)
            ]
            firsts = [asyncio.create_task(anext(stream)) for stream in streams]
            await asyncio.wait(firsts, return_when=asyncio.FIRST_COMPLETED)
            server.terminate()
            ends: list[str | None] = []
            for first, stream in zip(firsts, streams, strict=True):
                try:
                    pieces = [await first, *[piece async for piece in stream]]
                    ends.append(pieces[-1].sequences[0].finish_reason)
                except NotReadyError:  # it had no token yet
                    ends.append("not ready")
            assert "cancelled" in ends
            assert set(ends) <= {"length", "cancelled", "not ready"}
        assert await asyncio.to_thread(server.wait) == 0


def shift_the_probe(version: Path) -> None:
    edit(version, lambda decoder: decoder["probes"][0]["top"][0].__setitem__(1, 99.0))


def change_a_token(version: Path) -> None:
    def change(decoder: dict[str, Any]) -> None:
        tokens = decoder["probes"][0]["tokens"]
        tokens[0] = tokens[0] % 100 + 1

    edit(version, change)


def edit(version: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = version / "manifest.json"
    document = json.loads(path.read_text())
    change(document["decoders"][0])
    path.write_text(json.dumps(document))


def break_the_template(version: Path) -> None:
    with (version / "tokenizer" / "chat_template.jinja").open("a") as file:
        file.write(" ")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (shift_the_probe, "away from those it was certified with"),
        (change_a_token, "away from those it was certified with"),
        (break_the_template, "damaged or unfinished"),
    ],
)
def test_a_decoder_that_is_not_as_certified_is_not_served(
    writer: Writer, tmp_path: Path, damage: Callable[[Path], None], text: str
) -> None:
    shutil.copytree(writer.repository, tmp_path / "r")
    damage(tmp_path / "r" / WRITER / "1")
    found = enginehouse("serve", "--repository", tmp_path / "r", "--model", WRITER)
    assert found.returncode == 4
    assert text in found.stderr
    with ServerProcess(tmp_path / "r") as server, Client(server.address) as client:
        assert client.classify(MODEL, "a").results  # the other one is served
        with pytest.raises(UnloadableError, match=text):
            client.generate(WRITER, "a", timeout_s=1)


def test_a_cache_without_room_is_named(writer: Writer) -> None:
    found = enginehouse(
        *("serve", "--repository", writer.repository, "--model", WRITER),
        *("--cache-memory", "0.000001"),
    )
    assert found.returncode == 4
    assert "hold no block" in found.stderr


def test_a_small_cache_lowers_the_longest_sequence(writer: Writer) -> None:
    flags = ("--model", WRITER, "--cache-memory", "0.0002", "--max-sequence-tokens", "300")
    with ServerProcess(writer.repository, *flags) as server, Client(server.address) as client:
        limits = client.get_model(WRITER).limits
        assert limits.max_tokens <= limits.cache_tokens
        assert limits.max_tokens <= 300
        whole = client.generate(WRITER, PROMPT, stopping=Stopping(ignore_eos=True))
        [sequence] = whole.sequences
        assert sequence.usage is not None
        assert sequence.usage.prompt_tokens + sequence.usage.generated_tokens == limits.max_tokens
