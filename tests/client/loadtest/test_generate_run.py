import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from enginehouse.v1 import generate_pb2
from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_client import EnginehouseError, InvalidRequestError, UnsupportedError
from enginehouse_client.loadtest.generate import (
    Fixed,
    GenerateResult,
    GenerateSettings,
    run_closed,
    run_open,
)
from tests.client.fake_generator import BOS, FIRST_ID, FakeGenerator
from tests.client.fake_server import running, status


@pytest_asyncio.fixture
async def generator() -> AsyncIterator[FakeGenerator]:
    async with running(FakeGenerator()) as fake:
        assert isinstance(fake, FakeGenerator)
        yield fake


def settings(fake: FakeGenerator, **changes: object) -> GenerateSettings:
    chosen: dict[str, object] = {
        "warmup_s": 0.0,
        "duration_s": 0.4,
        "prompt_tokens": Fixed(8),
        "output_tokens": Fixed(4),
        "num_distinct": 64,
        **changes,
    }
    return GenerateSettings(fake.target, "writer", **chosen)  # type: ignore[arg-type]


def assert_adds_up(result: GenerateResult) -> None:
    counts = result.counts
    ended = counts.answered + counts.failed + counts.cancelled
    assert counts.due == ended + counts.unsent + counts.unfinished
    assert sum(error.count for error in result.errors) == counts.failed
    assert sum(result.finish_reasons.values()) == counts.answered
    if result.e2e_latency_ms is None:
        assert counts.answered == 0


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_closed_load_counts_what_the_server_saw(
    generator: FakeGenerator, is_streamed: bool
) -> None:
    chosen = settings(generator, num_requests=40, duration_s=20.0, is_streamed=is_streamed)
    result = await run_closed(chosen, concurrency=4)
    assert_adds_up(result)
    assert result.counts.answered == len(generator.asked) == 40
    tokens = result.tokens
    assert (tokens.prompt, tokens.output) == (40 * 8, 40 * 4)
    assert (tokens.server_prompt, tokens.server_generated, tokens.cached) == (320, 160, 120)
    assert result.finish_reasons == {"length": 40}
    assert result.server is not None
    assert result.server.prefill_ms.p50 == 1.0
    assert result.throughput.output_tokens_per_second == pytest.approx(160 / result.duration_s)
    assert result.throughput.total_tokens_per_second == pytest.approx(480 / result.duration_s)
    assert sum(point.output_tokens for point in result.timeline) == 160
    assert (result.ttft_ms is not None) == is_streamed
    assert (result.itl_ms is not None) == is_streamed
    assert result.e2e_latency_ms is not None


async def test_times_of_tokens_are_those_of_the_messages(generator: FakeGenerator) -> None:
    """The first token after 60 ms, then four tokens every 40 ms."""
    generator.per_message = 4

    async def step(_request: pb.GenerateRequest, number: int) -> None:
        await asyncio.sleep(0.04 if number else 0.06)

    generator.message_step = step
    chosen = settings(generator, num_requests=6, duration_s=20.0, output_tokens=Fixed(20))
    result = await run_closed(chosen, concurrency=1)
    assert result.ttft_ms is not None
    assert 60 <= result.ttft_ms.p50 < 120
    assert result.itl_ms is not None
    assert 9.5 <= result.itl_ms.p50 < 20
    assert result.itl_histogram is not None
    assert sum(result.itl_histogram.counts) == 6 * 16  # the first four came at once
    assert result.e2e_latency_ms is not None
    assert result.e2e_latency_ms.p50 >= 220
    assert result.tokens.output == 120


async def test_open_load_counts_from_the_time_a_request_was_due(generator: FakeGenerator) -> None:
    """A server that stalls for a second."""
    began = time.monotonic()

    async def step(_request: pb.GenerateRequest, number: int) -> None:
        await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - began)))

    generator.message_step = step
    result = await run_open(settings(generator, duration_s=2.0, output_tokens=Fixed(1)), rate=60)
    assert_adds_up(result)
    assert result.ttft_ms is not None
    # Half of the requests were due in the stall, and waited for its end: evenly from 0 to 1 s.
    assert result.ttft_ms.p99 > 800
    assert result.ttft_ms.p90 > 500


async def test_a_generator_that_is_held_up_does_not_hide_it(generator: FakeGenerator) -> None:
    async def hold_up() -> None:
        await asyncio.sleep(0.2)
        time.sleep(0.3)  # noqa: ASYNC251 - holds up the generator's loop, as a busy machine would

    held = asyncio.create_task(hold_up())
    result = await run_open(settings(generator, duration_s=0.8), rate=100)
    await held
    assert_adds_up(result)
    assert result.ttft_ms is not None
    assert result.ttft_ms.max > 200
    assert any("could not keep up" in warning for warning in result.warnings)


async def test_cancelled_streams_are_counted_and_the_server_is_told(
    generator: FakeGenerator,
) -> None:
    generator.message_step = lambda _request, number: asyncio.sleep(0.005 * number)
    chosen = settings(
        generator, num_requests=60, duration_s=20.0, cancel_fraction=0.5, output_tokens=Fixed(6)
    )
    result = await run_closed(chosen, concurrency=4)
    assert_adds_up(result)
    assert 15 <= result.counts.cancelled <= 45
    assert result.counts.cancelled + result.counts.answered == len(generator.asked) == 60
    for _ in range(500):
        if generator.num_left == result.counts.cancelled:
            break
        await asyncio.sleep(0.01)
    assert generator.num_left == result.counts.cancelled
    assert sum(point.cancelled for point in result.timeline) == result.counts.cancelled


async def test_every_request_that_was_due_ends_exactly_once(generator: FakeGenerator) -> None:
    """Answers, failures before and amid tokens, cancelled, late and unsent ones, together."""

    async def step(request: pb.GenerateRequest, number: int) -> None:
        kind = request.prompt.token_ids.ids[0] % 4
        if kind == 0 and number == 0:
            raise status(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", "OverloadedError", 5)
        if kind == 1 and number == 2:
            raise status(grpc.StatusCode.UNAVAILABLE, "device lost", "DeviceError")
        await asyncio.sleep(60 if kind == 2 and number == 3 else 0.01)

    generator.message_step = step
    chosen = settings(generator, timeout_s=0.3, duration_s=1.2, cancel_fraction=0.3)
    result = await run_open(chosen, rate=150, max_in_flight=6)
    counts = result.counts
    assert_adds_up(result)
    assert counts.answered > 0
    assert counts.cancelled > 0
    assert counts.unsent > 0
    assert counts.unfinished == 0
    assert {error.error for error in result.errors} == {
        "OverloadedError",
        "DeviceError",
        "DeadlineError",
    }
    assert counts.due - counts.unsent == len(generator.asked)


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_run_that_is_stopped_reports_what_was_done(
    generator: FakeGenerator, is_open: bool
) -> None:
    generator.message_step = lambda _request, _number: asyncio.sleep(0.03)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.5, stop.set)
    start = time.monotonic()
    chosen = settings(generator, warmup_s=0.1, duration_s=60.0, cancel_fraction=0.2)
    result = await (
        run_open(chosen, 150, max_in_flight=12, stop=stop)
        if is_open
        else run_closed(chosen, 8, stop)
    )
    assert time.monotonic() - start < 10
    assert result.is_interrupted
    assert_adds_up(result)
    assert result.counts.unfinished > 0
    assert result.counts.answered > 0
    assert (result.counts.unsent > 0) == is_open
    assert 0.2 < result.duration_s < 5


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (generate_pb2.FINISH_REASON_UNSPECIFIED, "InternalError"),
        (generate_pb2.FINISH_REASON_CANCELLED, "NotReadyError"),
    ],
)
async def test_an_answer_that_the_server_did_not_finish_has_failed(
    generator: FakeGenerator,
    reason: generate_pb2.FinishReason.ValueType,
    error: str,
    is_streamed: bool,
) -> None:
    generator.finish_reason = reason
    chosen = settings(generator, num_requests=3, duration_s=20.0, is_streamed=is_streamed)
    result = await run_closed(chosen, 1)
    assert_adds_up(result)
    assert [(each.error, each.count) for each in result.errors] == [(error, 3)]


async def test_a_server_that_stops_amid_its_tokens_does_not_hold_the_run(
    generator: FakeGenerator,
) -> None:
    generator.message_step = lambda _request, number: asyncio.sleep(60 if number else 0)
    result = await run_closed(settings(generator, timeout_s=0.2), 2)
    assert_adds_up(result)
    assert result.errors[0].error == "DeadlineError"
    assert result.ttft_ms is not None
    assert result.e2e_latency_ms is None


@pytest.mark.parametrize(
    ("slo", "least", "most"),
    [
        ({"slo_ttft_ms": 150.0}, 0.4, 0.6),
        ({"slo_itl_ms": 150.0}, 0.4, 0.6),
        ({"slo_ttft_ms": 150.0, "slo_itl_ms": 150.0}, 0.0, 0.0),
        ({"slo_ttft_ms": 5000.0, "slo_itl_ms": 5000.0}, 1.0, 1.0),
    ],
)
async def test_goodput_is_what_meets_all_objectives(
    generator: FakeGenerator, slo: dict[str, float], least: float, most: float
) -> None:
    """Each second request has its first token late, and the others their second."""

    async def step(request: pb.GenerateRequest, number: int) -> None:
        is_first_late = generator.asked.index(request) % 2
        is_late = number == 0 if is_first_late else number == 1
        await asyncio.sleep(0.3 if is_late else 0.0)

    generator.message_step = step
    chosen = settings(generator, num_requests=6, duration_s=20.0, output_tokens=Fixed(2), **slo)
    result = await run_closed(chosen, concurrency=3)
    fraction = result.throughput.goodput_fraction
    assert fraction is not None
    assert least <= fraction <= most


async def test_cancelled_requests_are_not_held_against_the_goodput(
    generator: FakeGenerator,
) -> None:
    chosen = settings(
        generator, num_requests=40, duration_s=20.0, slo_ttft_ms=5e3, cancel_fraction=0.5
    )
    result = await run_closed(chosen, concurrency=2)
    assert result.counts.cancelled > 0
    assert result.throughput.goodput_fraction == 1.0


async def test_warm_up_is_not_counted(generator: FakeGenerator) -> None:
    generator.message_step = lambda _request, _number: asyncio.sleep(0.005)
    result = await run_closed(settings(generator, warmup_s=0.4, duration_s=0.3), concurrency=2)
    assert_adds_up(result)
    assert 0 < result.counts.answered < len(generator.asked)
    assert result.itl_histogram is not None
    assert sum(result.itl_histogram.counts) == 3 * result.counts.answered


async def test_tokens_after_the_measurement_are_no_throughput(generator: FakeGenerator) -> None:
    generator.message_step = lambda _request, _number: asyncio.sleep(0.1)
    chosen = settings(generator, duration_s=0.55, output_tokens=Fixed(12))
    result = await run_closed(chosen, concurrency=2)
    assert result.counts.answered == 2
    assert result.tokens.output == 24
    assert 0 < sum(point.output_tokens for point in result.timeline) <= 10
    assert result.throughput.requests_per_second == 0


async def test_texts_are_counted_in_tokens(generator: FakeGenerator) -> None:
    chosen = settings(generator, prompts=("ab", "abcd"), num_requests=20, duration_s=20.0)
    result = await run_closed(chosen, 1)
    assert {request.prompt.text for request in generator.asked} == {"ab", "abcd"}
    assert result.tokens.prompt == result.tokens.server_prompt
    groups = [(each.min_tokens, each.max_tokens, each.count) for each in result.ttft_by_prompt]
    assert groups == [(3, 3, 10), (5, 5, 10)]
    assert result.load.num_prompts == 2


async def test_tokens_drawn_are_those_of_the_tokenizer(generator: FakeGenerator) -> None:
    await run_closed(settings(generator, num_requests=20, duration_s=20.0), 1)
    drawn = {i for request in generator.asked for i in request.prompt.token_ids.ids}
    assert BOS not in drawn
    assert min(drawn) >= FIRST_ID + ord(" ")
    assert max(drawn) <= FIRST_ID + ord("z")


async def test_a_range_of_tokens_needs_no_tokenizer(generator: FakeGenerator) -> None:
    generator.tells_tokens = False
    chosen = settings(generator, num_requests=20, duration_s=20.0, vocabulary=(7, 9))
    await run_closed(chosen, 1)
    drawn = {i for request in generator.asked for i in request.prompt.token_ids.ids}
    assert drawn == {7, 8, 9}
    with pytest.raises(EnginehouseError, match=r"--vocab LOW\.\.HIGH"):
        await run_closed(settings(generator), 1)


async def test_repeated_prompts_are_warned_of(generator: FakeGenerator) -> None:
    chosen = settings(generator, num_requests=20, duration_s=20.0)
    enough = await run_closed(chosen, 1)
    assert not any("--distinct" in warning for warning in enough.warnings)
    chosen = settings(generator, num_requests=20, duration_s=20.0, num_distinct=5)
    repeated = await run_closed(chosen, 1)
    assert any("--distinct makes more" in warning for warning in repeated.warnings)


async def test_what_cannot_be_is_refused_before_the_load(generator: FakeGenerator) -> None:
    with pytest.raises(UnsupportedError, match="task 'classify'"):
        await run_closed(GenerateSettings(generator.target, "topics"), 1)
    with pytest.raises(InvalidRequestError, match="writer takes 512"):
        await run_closed(settings(generator, prompt_tokens=Fixed(510)), 1)
    assert not generator.asked
