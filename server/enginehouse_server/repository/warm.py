"""Warms engines up, so that no request pays for a first time; and times those nobody has timed."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from time import perf_counter

from enginehouse_builder.manifest import StepTime
from enginehouse_server.engine.base import EncoderEngine, EncoderLane, Shape
from enginehouse_server.engine.decoder import DecoderEngine, StepItem
from enginehouse_server.scheduler import EncoderWork, ShapeGrid

__all__ = ["time_shapes", "time_steps", "warm_up", "warm_up_decoder"]

_log = logging.getLogger(__name__)
Check = Callable[[], None]
_RUNS = 3  # that are timed
_PIECES = (16, 64, 256)  # tokens of a prompt in a step


def warm_up(
    engine: EncoderEngine, grid: ShapeGrid, name: str, check: Check, *, num_runs: int = 1
) -> None:
    """Computes every shape on every lane, so that no request pays for a compilation.

    Args:
        engine: To warm up.
        grid: Its shapes.
        name: What messages call the version.
        check: Called between shapes, on several threads; what it raises ends it.
        num_runs: Of each shape: what becomes a CUDA graph does so at its second.
    """
    began = perf_counter()

    def run(lane: EncoderLane) -> None:
        for shape in grid.shapes:
            check()
            for _ in range(num_runs):
                _run(lane, shape)

    with ThreadPoolExecutor(len(engine.lanes)) as pool:
        list(pool.map(run, engine.lanes))
    _log.info(
        "%s: warmed up %d shapes (batch of 1 to %d, length %d to %d) in %.1f s",
        name,
        len(grid.shapes),
        max(s.batch for s in grid.shapes),
        grid.lengths[0],
        grid.max_tokens,
        perf_counter() - began,
    )


def time_shapes(engine: EncoderEngine, grid: ShapeGrid, check: Check) -> Mapping[Shape, float]:
    """Median seconds of every shape on a lane that is warm, the others idle."""
    lane = engine.lanes[0]
    found = {}
    for shape in grid.shapes:
        check()
        found[shape] = _median_s(partial(_run, lane, shape))
    return found


def warm_up_decoder(engine: DecoderEngine, name: str, check: Check) -> None:
    """Takes a step of every number of sequences twice, and chunks of prompts; clears the cache.

    What becomes a CUDA graph does so at its second run.
    """
    began = perf_counter()
    limits = engine.limits
    for num_tokens in _pieces(engine):
        check()
        _step(engine, 1, num_tokens)
    for num_sequences in range(1, _most(engine) + 1):
        check()
        for _ in range(2):
            _step(engine, num_sequences, 1)
    engine.clear_blocks(range(limits.num_blocks))
    _log.info(
        "%s: warmed up steps of 1 to %d sequences in %.1f s",
        *(name, _most(engine), perf_counter() - began),
    )


def time_steps(engine: DecoderEngine, check: Check) -> tuple[StepTime, ...]:
    """Median times of steps, of an engine that is warm; clears the cache."""
    found = []
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= _most(engine)]
    kinds = [("prefill", 1, n) for n in _pieces(engine)] + [("decode", n, 1) for n in sizes]
    for kind, num_sequences, num_tokens in kinds:
        check()
        seconds = _median_s(partial(_step, engine, num_sequences, num_tokens))
        found.append(
            StepTime(
                kind="prefill" if kind == "prefill" else "decode",
                num_sequences=num_sequences,
                num_tokens=num_sequences * num_tokens,
                num_cached=0,
                median_ms=seconds * 1e3,
            )
        )
    engine.clear_blocks(range(engine.limits.num_blocks))
    return tuple(found)


def _pieces(engine: DecoderEngine) -> list[int]:
    most = min(engine.limits.max_step_tokens, engine.limits.max_tokens)
    return sorted({min(n, most) for n in (*_PIECES, most)})


def _most(engine: DecoderEngine) -> int:
    """Sequences of a step, each with a block of its own."""
    return min(engine.limits.max_sequences, engine.limits.num_blocks)


def _step(engine: DecoderEngine, num_sequences: int, num_tokens: int) -> None:
    """New tokens of each of some sequences, at their beginning."""
    engine.start([StepItem([i], 0, [1] * num_tokens) for i in range(num_sequences)])
    engine.wait()


def _run(lane: EncoderLane, shape: Shape) -> None:
    lane.start([EncoderWork(0, 0, [1])], shape)
    lane.wait()


def _median_s(run: Callable[[], None]) -> float:
    seconds = []
    for _ in range(_RUNS):
        began = perf_counter()
        run()
        seconds.append(perf_counter() - began)
    return median(seconds)
