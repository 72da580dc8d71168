"""Times a decoder's steps by their kind and size; the scheduler plans with what is found.

What the cache holds does not change the time, so nothing is computed to fill it. Only what was
measured is said: on a slow engine that is a part, the most telling ones first.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from enginehouse_server.engine.decoder import DecoderEngine, DecoderSpec, StepItem
from enginehouse_server.engine.memory import available_bytes

from .decoder_file import token_bytes
from .manifest import StepTime

__all__ = ["Contexts", "StepBudget", "contexts_of", "measure_decoder"]

_PIECES = (16, 32, 64, 128, 256)  # tokens of a prompt in a step
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHORT, _LONG = 64, 1024  # tokens that a sequence has already
_BLOCK = 32  # tokens: a sequence's last block is counted in full
_CACHE_SHARE = 0.25  # of the memory that the engine's weights leave free, at most
_RUNS = 3
_MANY_RUNS = 9
_QUICK_S = 0.05  # a quicker step is run more often


class Contexts(NamedTuple):
    """How much the sequences have before a step.

    Attributes:
        lengths: Tokens of each, short and long.
        num_tokens: Of all that are measured at once; bounds the cache.
    """

    lengths: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepBudget:
    """How long to measure.

    Attributes:
        seconds: Until then all steps are taken.
        most_seconds: Until then as many more as `num_steps` needs.
        num_steps: Enough to know an engine's speed by.
    """

    seconds: float = 15.0
    most_seconds: float = 45.0
    num_steps: int = 8


class _Step(NamedTuple):
    """What is timed: as many new tokens of each of some sequences."""

    num_sequences: int
    num_new: int
    num_cached: int


def contexts_of(spec: DecoderSpec) -> Contexts:
    """A short and a long context that the engine's limits and the free memory allow."""
    half = spec.max_tokens // 2
    lengths = tuple(dict.fromkeys(min(length, half) for length in (_SHORT, _LONG)))
    most = min(spec.max_sequences, _SEQUENCES[-1])
    wanted = max(most * (lengths[-1] + 1 + _BLOCK), min(spec.max_tokens, lengths[-1] + _PIECES[-1]))
    free = available_bytes()
    if free is not None:
        files = spec.model.parent.glob(f"{spec.model.name}*")
        free -= min(free, sum(file.stat().st_size for file in files))
        allowed = int(free * _CACHE_SHARE) // token_bytes(spec) - _BLOCK
        wanted = max(min(wanted, allowed), min(spec.max_tokens, lengths[0] + _PIECES[-1]))
    return Contexts(lengths, wanted)


def measure_decoder(
    engine: DecoderEngine,
    contexts: Contexts,
    budget: StepBudget = StepBudget(),
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[StepTime, ...]:
    """Median times: pieces of a prompt first, then tokens of ever more sequences.

    A step whose time would pass the budget, as the last ones let expect, is passed over.
    """
    began = clock()
    found: dict[_Step, float] = {}
    per_token = 0.0  # seconds, of the dearest step so far
    for step in _steps(engine, contexts):
        limit = budget.seconds if len(found) >= budget.num_steps else budget.most_seconds
        expected = per_token * step.num_sequences * step.num_new * (_RUNS + 1)
        if found and clock() - began + expected > limit:
            continue
        found[step] = _median_s(engine, step, clock)
        per_token = max(per_token, found[step] / (step.num_sequences * step.num_new))
    return tuple(
        StepTime(
            kind="prefill" if step.num_new > 1 else "decode",
            num_sequences=step.num_sequences,
            num_tokens=step.num_sequences * step.num_new,
            num_cached=step.num_cached,
            median_ms=round(found[step] * 1e3, 4),
        )
        for step in sorted(found, key=lambda s: (s.num_new == 1, s.num_cached, s))
    )


def _steps(engine: DecoderEngine, contexts: Contexts) -> Iterator[_Step]:
    """What the engine's limits allow, from the most telling to the least."""
    limits = engine.limits
    pieces = [n for n in _PIECES if n <= limits.max_step_tokens]
    most = min(limits.max_sequences, limits.max_step_tokens)
    sequences = [*(n for n in _SEQUENCES if n < most), min(most, _SEQUENCES[-1])]
    wanted = [
        *(_Step(n, 1, contexts.lengths[0]) for n in sequences),
        *(_Step(1, n, 0) for n in pieces),
        *(_Step(n, 1, contexts.lengths[-1]) for n in sequences),
        *(_Step(1, n, contexts.lengths[-1]) for n in pieces),
    ]
    for step in dict.fromkeys(wanted):
        end = step.num_cached + step.num_new
        blocks = step.num_sequences * -(-end // limits.block_size)
        if end <= limits.max_tokens and blocks <= limits.num_blocks:
            yield step


def _median_s(engine: DecoderEngine, step: _Step, clock: Callable[[], float]) -> float:
    each = -(-(step.num_cached + step.num_new) // engine.limits.block_size)
    items = [
        StepItem(range(i * each, (i + 1) * each), step.num_cached, [1] * step.num_new)
        for i in range(step.num_sequences)
    ]

    def run() -> float:
        started = clock()
        engine.start(items)
        engine.wait()
        return clock() - started

    run()  # compiles the kernels of the shape
    seconds = [run() for _ in range(_RUNS)]
    if median(seconds) < _QUICK_S:
        seconds += [run() for _ in range(_MANY_RUNS - _RUNS)]
    return median(seconds)
