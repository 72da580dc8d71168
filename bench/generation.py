"""What is measured of Generate, over gRPC, against the same engine stepped in a bare loop."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from enginehouse_client import AsyncClient, OutputOptions, Sampling, Stopping

from .models import build_model
from .pairs import Comparison, compare
from .processes import DecoderFloor, Served

__all__ = ["decode_over_loop", "long_prompts_beside_streams", "shared_prefix"]

_PROMPT, _NEW = 128, 96  # tokens
_LONG_PROMPT = 512
_GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class _Stream:
    """When each token of a stream came, seconds; and when it was asked for."""

    asked_at: float
    token_times: list[float]

    @property
    def ttft_ms(self) -> float:
        return 1e3 * (self.token_times[0] - self.asked_at)

    @property
    def itls_ms(self) -> list[float]:
        return [1e3 * gap for gap in np.diff(self.token_times).tolist()]


def decode_over_loop(num_pairs: int) -> Iterator[Comparison | str]:
    """Tokens a second of 1, 8 and 16 streams over the bare loop's at that batch."""
    version = build_model("qwen3", "int8")
    with Served(version) as server, DecoderFloor(version) as floor:
        for size in (1, 8, 16):
            yield compare(
                f"qwen3 int8 decode, {size} streams over the bare loop",
                "tokens/s",
                _decode_rate(server, size),
                lambda size=size: floor.ask(f"decode {size} {_PROMPT} {_NEW}"),  # type: ignore[misc]
                num_pairs,
                0.95,
            )


def shared_prefix(num_pairs: int) -> Iterator[Comparison | str]:
    """Time to first token with 512 tokens known and 16 new, over that of 528 new ones."""
    version = build_model("qwen3", "int8")
    with Served(version) as server:
        prefix = _prompt(_LONG_PROMPT, 10_000)

        async def turn(index: int) -> tuple[float, float]:
            async with AsyncClient(server.address) as client:
                cold = _prompt(_LONG_PROMPT + 16, 20_000 + index)
                warm = [*prefix, *_prompt(16, 30_000 + index)]
                await _stream(client, server.model, [*prefix, *_prompt(4, index)], 1)
                first = await _stream(client, server.model, cold, 1)
                again = await _stream(client, server.model, warm, 1)
                return first.ttft_ms, again.ttft_ms

        turns = [asyncio.run(turn(i)) for i in range(num_pairs)]
    ratios = [warm / cold for cold, warm in turns]
    cold_ms, warm_ms = (median(t[i] for t in turns) for i in (0, 1))
    yield (
        f"qwen3 int8, shared prefix of 512 tokens, 16 new: time to first token {warm_ms:.0f} "
        f"against {cold_ms:.0f} ms cold, {median(ratios):.3f} of it "
        f"({min(ratios):.3f} to {max(ratios):.3f}; bar: at most 0.125)"
    )


def long_prompts_beside_streams(seconds: float) -> Iterator[Comparison | str]:
    """Prompts of 512 tokens every two seconds while 8 streams run, and the same apart."""
    version = build_model("qwen3", "int8")
    with Served(version) as server:
        quiet = asyncio.run(_streams_and_prompts(server, 8, 0, seconds))
        idle = asyncio.run(_streams_and_prompts(server, 0, 4, seconds))
        both = asyncio.run(_streams_and_prompts(server, 8, max(3, int(seconds / 2)), seconds))
    quiet_ms = median(quiet[0])
    p99 = float(np.percentile(both[0], 99))
    yield (
        f"qwen3 int8, 8 streams with prompts of 512 tokens every 2 s: itl p99 {p99:.0f} ms, "
        f"{p99 / quiet_ms:.2f} of the quiet median of {quiet_ms:.0f} ms (bar: at most 3)"
    )
    ratio = median(both[1]) / median(idle[1])
    yield (
        f"  the prompts' time to first token: {median(both[1]):.0f} ms against "
        f"{median(idle[1]):.0f} ms on an idle server, {ratio:.2f} of it (bar: at most 2)"
    )


def _decode_rate(server: Served, size: int) -> Callable[[], float]:
    counter = iter(range(1_000_000))

    async def measure() -> float:
        async with AsyncClient(server.address) as client:
            first = next(counter) * size
            streams = await asyncio.gather(
                *(
                    _stream(client, server.model, _prompt(_PROMPT, first + i), _NEW + size)
                    for i in range(size)
                )
            )
        begin = max(s.token_times[0] for s in streams)
        end = min(s.token_times[-1] for s in streams)
        num_tokens = sum(begin < t <= end for s in streams for t in s.token_times)
        return num_tokens / (end - begin)

    return lambda: asyncio.run(measure())


async def _streams_and_prompts(
    server: Served, num_streams: int, num_prompts: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Gaps between the streams' tokens, and times to the first token of the prompts, ms."""
    async with AsyncClient(server.address) as client:
        running = [
            asyncio.create_task(_stream(client, server.model, _prompt(_PROMPT, i), 800, seconds))
            for i in range(num_streams)
        ]
        await asyncio.sleep(2 if num_streams else 0)
        prompts = []
        for i in range(num_prompts):
            prompt = _prompt(_LONG_PROMPT, 50_000 + 100 * num_streams + i)
            prompts.append(asyncio.create_task(_stream(client, server.model, prompt, 1)))
            await asyncio.sleep(2)
        streams = await asyncio.gather(*running)
        # Their own beginning is left out: they prefill beside each other then.
        begin = max((s.token_times[0] for s in streams), default=0.0)
        gaps = [
            1e3 * (b - a)
            for s in streams
            for a, b in zip(s.token_times, s.token_times[1:], strict=False)
            if a >= begin
        ]
        return gaps, [(await p).ttft_ms for p in prompts]


async def _stream(
    client: AsyncClient, model: str, prompt: list[int], num_new: int, seconds: float = 600.0
) -> _Stream:
    asked_at, times = time.perf_counter(), list[float]()
    async with asyncio.timeout(900):
        async for chunk in client.generate_stream(
            model,
            prompt,
            sampling=_GREEDY,
            stopping=Stopping(max_new_tokens=num_new, ignore_eos=True),
            output=OutputOptions(token_ids=True),
        ):
            now = time.perf_counter()
            times += [now] * sum(len(s.token_ids) for s in chunk.sequences)
            if now - asked_at > seconds:
                break
    return _Stream(asked_at, times)


def _prompt(num_tokens: int, seed: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(1000, 20_000, num_tokens)]
