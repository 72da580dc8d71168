"""Generate on a GPU: tokens a second by streams, and how near one stream is to the memory's speed.

A token of one sequence needs every weight read once: the bytes of the weights over the speed at
which the device's memory is read bound how many there can be in a second. That speed is measured,
by a copy within the device.
"""

import itertools
from collections.abc import Iterator, Sequence

from .gpu_use import GpuUse
from .models import build_model, checkpoint_of
from .processes import Process, Served
from .workload import Replayed, replay, together

__all__ = ["measure_generate"]

_PROMPT, _NEW = 128, 128  # tokens
_MAX_TOKENS = 512
_WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}


def measure_generate(
    shape: str, target: str, precision: str, in_flight: Sequence[int]
) -> Iterator[str]:
    """Rates of the server and of transformers' generate on the same GPU."""
    more = ("--max-tokens", str(_MAX_TOKENS), "--max-batch", str(max(in_flight)))
    version = build_model(shape, precision, target, *more)
    rates: dict[int, float] = {}
    seeds = itertools.count(0, 1000)
    flags = ("--require", target.partition(":")[0], "--max-waiting", "1024")
    with Served(version, *flags) as server:
        replay(server.address, server.model, together(2, _PROMPT, 8, next(seeds)))
        for size in in_flight:
            with GpuUse() as use:
                requests = together(size, _PROMPT, _NEW, next(seeds))
                rates[size] = _decode_rate(replay(server.address, server.model, requests))
            yield f"{size} streams: {rates[size]:.0f} tokens/s, {use}"
    arguments = (checkpoint_of(shape), precision, str(_PROMPT), str(_NEW))
    with Process("-m", "bench.peer_torch", "generate", *arguments) as peer:
        num_weights, bandwidth = float(peer.ask("weights")), float(peer.ask("bandwidth"))
        for size in in_flight:
            theirs = peer.measure(f"decode {size}")
            ratio = rates[size] / theirs
            yield f"{size} streams, transformers: {theirs:.0f} tokens/s; served over it {ratio:.2f}"
    ceiling = bandwidth / (num_weights * _WEIGHT_BYTES[precision])
    yield (
        f"one stream: {rates[1] / ceiling:.0%} of the {ceiling:.0f} tokens/s at which memory of "
        f"{bandwidth / 1e12:.2f} TB/s gives {num_weights / 1e9:.2f} G weights in {precision}"
    )


def _decode_rate(found: Replayed) -> float:
    """Tokens a second while all streams run: without their prefills."""
    begin, end = max(t[0] for t in found.times), min(t[-1] for t in found.times)
    if end <= begin:  # they were never all running: more than the engine runs at once
        return found.tokens_per_second
    return sum(begin < t <= end for times in found.times for t in times) / (end - begin)
