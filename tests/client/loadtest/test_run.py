import asyncio
import time

import grpc
import pytest

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_client import ConnectionFailedError, ModelNotFoundError
from enginehouse_client.loadtest import LoadResult, LoadSettings, run_closed, run_open
from enginehouse_client.loadtest.classify.payloads import make_payloads
from tests.client.fake_server import FakeServer, status

TEXTS = ("one", "two two", "three three three")


def settings(server: FakeServer, **changes: object) -> LoadSettings:
    chosen: dict[str, object] = {"warmup_s": 0.0, "duration_s": 0.3, **changes}
    return LoadSettings(server.target, "topics", TEXTS, **chosen)  # type: ignore[arg-type]


def num_due(result: LoadResult) -> int:
    counts = result.counts
    assert counts.due == counts.answered + counts.failed + counts.unsent + counts.unfinished
    return counts.due


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_closed_load_counts_what_the_server_saw(
    aio_server: FakeServer, is_streamed: bool
) -> None:
    chosen = settings(aio_server, num_requests=60, duration_s=20.0, is_streamed=is_streamed)
    result = await run_closed(chosen, concurrency=4)
    assert result.counts.answered == len(aio_server.requests) == 60
    assert result.counts.failed == 0
    assert result.duration_s < 20
    assert result.server is not None
    assert result.server.compute_ms.p50 == 1.5
    assert result.latency_ms is not None
    assert 0 < result.latency_ms.p50 <= result.latency_ms.p99 <= result.latency_ms.max
    assert result.served.model == "topics"


async def test_closed_load_keeps_to_its_concurrency(aio_server: FakeServer) -> None:
    running = most = 0

    async def step(_sent: pb.ClassifyRequest) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1

    aio_server.step = step
    await run_closed(settings(aio_server), concurrency=3)
    assert most == 3


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("is_open", [False, True])
async def test_a_server_that_never_answers_does_not_hold_the_run(
    aio_server: FakeServer, is_streamed: bool, is_open: bool
) -> None:
    aio_server.step = lambda _sent: asyncio.sleep(60)
    chosen = settings(aio_server, timeout_s=0.2, is_streamed=is_streamed)
    start = time.monotonic()
    result = await (run_open(chosen, 50) if is_open else run_closed(chosen, 2))
    assert time.monotonic() - start < 10
    assert result.latency_ms is None
    assert result.errors[0].error == "DeadlineError"
    assert result.errors[0].count == result.counts.failed > 0


async def test_open_load_sends_at_its_rate_whatever_the_server_does(
    aio_server: FakeServer,
) -> None:
    aio_server.step = lambda _sent: asyncio.sleep(0.2)
    result = await run_open(settings(aio_server, duration_s=1.0), rate=200)
    assert 140 <= num_due(result) <= 260  # Poisson: 200 with a deviation of 14
    assert result.pace.mode == "open"


async def test_open_load_counts_from_the_time_a_request_was_due(aio_server: FakeServer) -> None:
    """A server that stalls for a second: a closed load would show it in one sample a client."""
    began = time.monotonic()

    async def step(_sent: pb.ClassifyRequest) -> None:
        await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - began)))

    aio_server.step = step
    result = await run_open(settings(aio_server, duration_s=2.0), rate=100)
    assert result.latency_ms is not None
    # Half of the requests were due in the stall, and waited for its end: evenly from 0 to 1 s.
    assert result.latency_ms.p99 > 800
    assert result.latency_ms.p90 > 600
    assert result.counts.unsent == 0


async def test_a_generator_that_is_held_up_does_not_hide_it(aio_server: FakeServer) -> None:
    async def hold_up() -> None:
        await asyncio.sleep(0.2)
        time.sleep(0.3)  # noqa: ASYNC251 - holds up the generator's loop, as a busy machine would

    held = asyncio.create_task(hold_up())
    result = await run_open(settings(aio_server, duration_s=0.8), rate=200)
    await held
    assert result.latency_ms is not None
    assert result.latency_ms.max > 200
    assert result.generator.send_lag_ms is not None
    assert result.generator.send_lag_ms.max > 200
    assert not result.generator.has_kept_up
    assert any("could not keep up" in warning for warning in result.warnings)


async def test_open_load_does_not_exceed_what_may_be_in_flight(aio_server: FakeServer) -> None:
    aio_server.step = lambda _sent: asyncio.sleep(60)
    chosen = settings(aio_server, timeout_s=0.5)
    result = await run_open(chosen, rate=200, max_in_flight=5)
    assert len(aio_server.requests) == 5
    assert result.counts.unsent > 0
    assert any("not sent" in warning for warning in result.warnings)


async def test_the_same_seed_makes_the_same_load(aio_server: FakeServer) -> None:
    async def texts_sent(seed: int) -> list[str]:
        aio_server.requests.clear()
        await run_open(settings(aio_server, seed=seed, num_requests=20), rate=400)
        return [request.inputs[0].text for request in aio_server.requests]

    assert await texts_sent(1) == await texts_sent(1)


async def test_warm_up_is_not_counted(aio_server: FakeServer) -> None:
    result = await run_closed(settings(aio_server, warmup_s=0.3, duration_s=0.2), concurrency=2)
    assert 0 < result.counts.answered < len(aio_server.requests)


async def test_errors_are_told_apart(aio_server: FakeServer) -> None:
    async def step(_sent: pb.ClassifyRequest) -> None:
        if len(aio_server.requests) % 2:
            raise status(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", "OverloadedError", 5)

    aio_server.step = step
    result = await run_closed(
        settings(aio_server, num_requests=40, duration_s=20.0, slo_ms=60_000.0), 1
    )
    assert (result.counts.answered, result.counts.failed) == (20, 20)
    (error,) = result.errors
    assert (error.error, error.code, error.count, error.example) == (
        "OverloadedError",
        "RESOURCE_EXHAUSTED",
        20,
        "queue full",
    )
    assert result.throughput.goodput_fraction == 0.5


async def test_goodput_leaves_out_what_was_late(aio_server: FakeServer) -> None:
    async def step(_sent: pb.ClassifyRequest) -> None:
        await asyncio.sleep(0.3 if len(aio_server.requests) % 2 else 0.0)

    aio_server.step = step
    chosen = settings(aio_server, num_requests=10, duration_s=20.0, slo_ms=250.0)
    result = await run_closed(chosen, concurrency=1)
    assert result.throughput.goodput_fraction is not None
    assert result.throughput.goodput_fraction <= 0.5


async def test_a_run_that_is_stopped_reports_what_was_done(aio_server: FakeServer) -> None:
    aio_server.step = lambda _sent: asyncio.sleep(0.01 if len(aio_server.requests) < 5 else 60)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, stop.set)
    start = time.monotonic()
    result = await run_closed(settings(aio_server, duration_s=60.0), 2, stop)
    assert time.monotonic() - start < 10
    assert result.is_interrupted
    assert result.counts.answered == 4
    assert result.counts.unfinished == 2
    assert result.counts.due == 6


async def test_the_model_is_looked_up_before_the_load(aio_server: FakeServer) -> None:
    with pytest.raises(ModelNotFoundError):
        await run_closed(LoadSettings(aio_server.target, "other", TEXTS), 1)
    with pytest.raises(ConnectionFailedError):
        await run_closed(LoadSettings("127.0.0.1:1", "topics", TEXTS), 1)
    assert not aio_server.requests


async def test_several_texts_make_a_request(aio_server: FakeServer) -> None:
    chosen = settings(aio_server, num_requests=6, duration_s=20.0, texts_per_request=2)
    result = await run_closed(chosen, 1)
    assert {len(request.inputs) for request in aio_server.requests} == {2}
    assert result.throughput.texts_per_second == pytest.approx(
        2 * result.throughput.requests_per_second
    )


def test_every_text_is_sent_as_often() -> None:
    chosen = LoadSettings("127.0.0.1:1", "topics", TEXTS, texts_per_request=2)
    requests = [pb.ClassifyRequest.FromString(payload) for payload in make_payloads(chosen)]
    sent = [item.text for request in requests for item in request.inputs]
    assert sorted(sent) == sorted(TEXTS * 2)


def test_settings_that_make_no_sense_are_refused_all_at_once() -> None:
    with pytest.raises(ValueError, match=r"texts must not be empty; .*duration_s"):
        LoadSettings("127.0.0.1:1", "topics", (), duration_s=0.0)
