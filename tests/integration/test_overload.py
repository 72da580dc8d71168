"""Twice the bearable rate, for a while: what is sent is answered, one way or another."""

import asyncio
from pathlib import Path
from statistics import median

import psutil
import pytest

from enginehouse_client.loadtest import LoadSettings, run_closed, run_open
from tests.fixtures.server import ServerProcess

MODEL = "tiny"
SECONDS = 12.0
MAX_RATE = 600.0  # requests a second that the generator surely keeps up with
TEXTS = tuple("dog " * n for n in (1, 2, 3, 5, 8, 13, 21, 34))


@pytest.mark.slow
async def test_overload_is_refused_and_nothing_is_lost_or_leaks(repository: Path) -> None:
    with ServerProcess(repository, "--threads", "1", "--max-queue", "16") as server:
        settings = LoadSettings(server.address, MODEL, TEXTS, duration_s=2.0, timeout_s=5.0)
        closed = await run_closed(settings, 16)
        rate = min(2 * closed.throughput.requests_per_second, MAX_RATE)
        overload = LoadSettings(server.address, MODEL, TEXTS, duration_s=SECONDS, timeout_s=0.5)
        memory: list[int] = []
        sampling = asyncio.create_task(_sample(server.process_id, memory))
        found = await run_open(overload, rate, max_in_flight=2000)
        sampling.cancel()
        counts = found.counts
        assert counts.unsent == counts.unfinished == 0
        assert counts.answered > 0
        assert {e.code for e in found.errors} <= {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
        assert sum(e.count for e in found.errors) == counts.failed
        third = len(memory) // 3
        assert median(memory[2 * third :]) <= 1.03 * median(memory[third : 2 * third])
        after = await run_closed(settings, 1)
        assert after.counts.answered > 0
        assert after.counts.failed == 0


async def _sample(process_id: int, memory: list[int]) -> None:
    process = psutil.Process(process_id)
    while True:
        memory.append(process.memory_info().rss)
        await asyncio.sleep(0.1)
