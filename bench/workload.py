"""Requests for a server and its peers alike, and the figures of what came of them."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import uvloop

from enginehouse_client import AsyncClient, OutputOptions, Sampling, Stopping

__all__ = ["Replayed", "Request", "mixed", "prompt_of", "replay", "together"]

_GREEDY = Sampling(temperature=0.0)
_TIMEOUT_S = 900.0
_LOW, _HIGH = 1000, 20_000  # token ids; every vocabulary that is measured has them
_PREFIX = 256


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a workload.

    Attributes:
        due_s: When it is sent, since the beginning.
        prompt: Token ids.
        num_new: Tokens that are generated; the end of sequence is ignored.
    """

    due_s: float
    prompt: list[int]
    num_new: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """When each token of each request of a workload came, seconds since its beginning."""

    requests: Sequence[Request]
    times: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        """Refuses answers that are not whole."""
        asked, came = [r.num_new for r in self.requests], [len(t) for t in self.times]
        if asked != came:
            raise ValueError(f"tokens asked for: {asked}; that came: {came}")

    @property
    def tokens_per_second(self) -> float:
        """From the first request to the last token, prompts included in the time."""
        return sum(map(len, self.times)) / max(t[-1] for t in self.times)

    @property
    def ttft_ms(self) -> float:
        """Median time to the first token, from when the request was due."""
        waits = [t[0] - r.due_s for r, t in zip(self.requests, self.times, strict=True)]
        return 1e3 * float(np.median(waits))

    @property
    def itl_p99_ms(self) -> float:
        """99th percentile of the time between tokens of a request; those that came at once: one."""
        gaps = np.concatenate([np.diff(np.unique(times)) for times in self.times])
        return 1e3 * float(np.percentile(gaps, 99))


def prompt_of(num_tokens: int, seed: int) -> list[int]:
    """Random token ids, another prompt for each seed."""
    return [int(i) for i in np.random.default_rng(seed).integers(_LOW, _HIGH, num_tokens)]


def together(size: int, num_prompt: int, num_new: int, seed: int) -> list[Request]:
    """Requests of equal lengths and different prompts, all at once."""
    return [Request(0.0, prompt_of(num_prompt, seed + i), num_new) for i in range(size)]


def mixed(rate: float, seconds: float, seed: int) -> list[Request]:
    """Poisson arrivals of prompts of 32 to 512 tokens with 16 to 128 new ones.

    Half of them begin with the same 256 tokens.
    """
    random = np.random.default_rng(seed)
    prefix = prompt_of(_PREFIX, seed)
    requests, due_s = list[Request](), float(random.exponential(1 / rate))
    while due_s < seconds or not requests:
        shared = prefix if random.random() < 0.5 else []
        length = int(random.integers(len(shared) + 32, 512, endpoint=True))
        own = random.integers(_LOW, _HIGH, length - len(shared)).tolist()
        num_new = int(random.integers(16, 128, endpoint=True))
        requests.append(Request(due_s, [*shared, *own], num_new))
        due_s += float(random.exponential(1 / rate))
    return requests


def replay(
    address: str, model: str, requests: Sequence[Request], *, streamed: bool = True
) -> Replayed:
    """Sends the requests to a server when they are due, each as a stream or for a whole answer.

    The tokens of a whole answer all come when it does. On the loop that takes least from the
    server, which runs on the same processors.

    Raises:
        ExceptionGroup: If one fails.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_replay(address, model, requests, streamed))


async def _replay(
    address: str, model: str, requests: Sequence[Request], streamed: bool
) -> Replayed:
    async with AsyncClient(address) as client:
        await client.get_model(model)  # connects
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            answer = _stream if streamed else _whole
            answers = [group.create_task(answer(client, model, r, began)) for r in requests]
    return Replayed(requests, [task.result() for task in answers])


async def _stream(client: AsyncClient, model: str, request: Request, began: float) -> list[float]:
    await asyncio.sleep(began + request.due_s - time.perf_counter())
    times = list[float]()
    stream = client.generate_stream(
        model,
        request.prompt,
        sampling=_GREEDY,
        stopping=Stopping(max_new_tokens=request.num_new, ignore_eos=True),
        output=OutputOptions(token_ids=True),
        timeout_s=_TIMEOUT_S,
    )
    async for piece in stream:
        now = time.perf_counter() - began
        times += [now] * sum(len(s.token_ids) for s in piece.sequences)
    return times


async def _whole(client: AsyncClient, model: str, request: Request, began: float) -> list[float]:
    await asyncio.sleep(began + request.due_s - time.perf_counter())
    found = await client.generate(
        model,
        request.prompt,
        sampling=_GREEDY,
        stopping=Stopping(max_new_tokens=request.num_new, ignore_eos=True),
        output=OutputOptions(token_ids=True),
        timeout_s=_TIMEOUT_S,
    )
    return [time.perf_counter() - began] * sum(len(s.token_ids) for s in found.sequences)
