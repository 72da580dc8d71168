"""What is measured of Generate, over gRPC, against the same engine stepped in a bare loop."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import numpy as np

from .models import build_model
from .pairs import Comparison, compare
from .processes import DecoderFloor, Served
from .workload import Request, prompt_of, replay, together

__all__ = ["decode_over_loop", "long_prompts_beside_streams", "shared_prefix"]

_PROMPT, _NEW = 128, 96  # tokens
_LONG_PROMPT = 512
_NUM_STREAMS, _MOST_NEW, _WARM_NEW = 8, 880, 160
_EVERY_S, _NUM_IDLE, _LEAST_PROMPTS = 2.0, 5, 3


def decode_over_loop(shape: str, num_pairs: int) -> Iterator[Comparison | str]:
    """Tokens a second of 1, 8 and 16 streams over the bare loop's at that batch."""
    version = build_model(shape, "int8")
    with Served(version) as server, DecoderFloor(version) as floor:
        for size in (1, 8, 16):
            yield compare(
                f"{shape} int8 decode, {size} streams over the bare loop",
                "tokens/s",
                _decode_rate(server, size),
                lambda size=size: floor.measure(f"decode {size} {_PROMPT} {_NEW}"),  # type: ignore[misc]
                num_pairs,
                0.95,
            )


def shared_prefix(shape: str, num_pairs: int) -> Iterator[Comparison | str]:
    """Time to first token with 512 tokens known and 16 new, over that of 528 new ones."""
    version = build_model(shape, "int8")
    with Served(version) as server:
        prefix = prompt_of(_LONG_PROMPT, 10_000)

        def ttft_ms(prompt: list[int]) -> float:
            return replay(server.address, server.model, [Request(0.0, prompt, 1)]).ttft_ms

        turns = []
        for i in range(num_pairs):
            ttft_ms([*prefix, *prompt_of(4, i)])
            cold_ms = ttft_ms(prompt_of(_LONG_PROMPT + 16, 20_000 + i))
            turns.append((cold_ms, ttft_ms([*prefix, *prompt_of(16, 30_000 + i)])))
    ratios = [warm / cold for cold, warm in turns]
    cold_ms, warm_ms = (median(t[i] for t in turns) for i in (0, 1))
    yield (
        f"{shape} int8, shared prefix of 512 tokens, 16 new: time to first token {warm_ms:.0f} "
        f"against {cold_ms:.0f} ms cold, {median(ratios):.3f} of it "
        f"({min(ratios):.3f} to {max(ratios):.3f}; bar: at most 0.125)"
    )


def long_prompts_beside_streams(shape: str, seconds: float) -> Iterator[Comparison | str]:
    """Prompts of 512 tokens every two seconds while 8 streams run, and the same apart."""
    version = build_model(shape, "int8")
    with Served(version) as server:
        # Kernels are made for new shapes: in turns before, with other prompts.
        _gaps_and_ttfts(server, _streams(_WARM_NEW, 100), 2)
        step_ms = median(_gaps_and_ttfts(server, _streams(_WARM_NEW, 200), 0)[0])
        streams = _streams(min(_MOST_NEW, int(1e3 * seconds / step_ms)), 300)
        quiet, _ = _gaps_and_ttfts(server, streams, 0)
        _, idle = _gaps_and_ttfts(server, [], _NUM_IDLE)
        gaps, beside = _gaps_and_ttfts(server, streams, int(seconds / _EVERY_S))
    if len(beside) < _LEAST_PROMPTS:
        yield (
            f"not measured: the streams ended after {len(beside)} prompts, of {_LEAST_PROMPTS} at "
            "least; take more --seconds, or a larger --decoder"
        )
        return
    p99, quiet_ms = float(np.percentile(gaps, 99)), median(quiet)
    yield (
        f"{shape} int8, 8 streams with prompts of 512 tokens every 2 s: itl p99 {p99:.0f} ms, "
        f"{p99 / quiet_ms:.2f} of the quiet median of {quiet_ms:.0f} ms (bar: at most 3)"
    )
    yield (
        f"  the {len(beside)} prompts' time to first token: {median(beside):.0f} ms "
        f"({min(beside):.0f} to {max(beside):.0f}) against {median(idle):.0f} ms on an idle "
        f"server, {median(beside) / median(idle):.2f} of it (bar: at most 2)"
    )


def _decode_rate(server: Served, size: int) -> Callable[[], float]:
    seeds = itertools.count(0, size)

    def measure() -> float:
        requests = together(size, _PROMPT, _NEW + size, next(seeds))
        times = replay(server.address, server.model, requests).times
        # While all run: without their prefills, which are not together either.
        begin, end = max(t[0] for t in times), min(t[-1] for t in times)
        return sum(begin < t <= end for stream in times for t in stream) / (end - begin)

    return measure


def _streams(num_new: int, seed: int) -> list[Request]:
    return together(_NUM_STREAMS, _PROMPT, num_new, seed)


def _gaps_and_ttfts(
    server: Served, streams: Sequence[Request], num_prompts: int
) -> tuple[list[float], list[float]]:
    """Gaps between the streams' messages and times to the prompts' first tokens, ms.

    Only what is while all streams run; of the streams, when there are prompts, from the first
    of these until the last is answered. A message with several tokens is one gap, as it is read.
    """
    # The streams are past their own prompts by the time of the first.
    dues = [(2 + i) * _EVERY_S for i in range(num_prompts)]
    seed = 50_000 + 100 * len(streams) + 10_000 * num_prompts
    prompts = [Request(due_s, prompt_of(_LONG_PROMPT, seed + i), 1) for i, due_s in enumerate(dues)]
    found = replay(server.address, server.model, [*streams, *prompts]).times
    running, firsts = found[: len(streams)], [t[0] for t in found[len(streams) :]]
    end = min((t[-1] for t in running), default=float("inf"))
    waits = [(due, first) for due, first in zip(dues, firsts, strict=True) if first <= end]
    begin = max([t[0] for t in running] + dues[:1], default=0.0)
    last = max((first for _, first in waits), default=end)
    gaps = _gaps_ms(running, begin, min(end, last))
    return gaps, [1e3 * (first - due) for due, first in waits]


def _gaps_ms(streams: Sequence[Sequence[float]], begin: float, end: float) -> list[float]:
    return [
        1e3 * (b - a)
        for times in streams
        for a, b in itertools.pairwise(sorted(set(times)))
        if begin <= b and a <= end
    ]
