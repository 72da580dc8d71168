"""Random traffic for a while, of every kind that callers make, on a cache too small for it."""

import pytest

from bench.soak import MAX_GROWTH, soak
from bench.traffic import LEFT, STALLED, TrafficSettings
from tests.fixtures.server import ServerProcess
from tests.integration.conftest import WRITER, Writer

TRAFFIC = TrafficSettings(
    seconds=10.0,
    rate=40.0,
    prompt_tokens=(1, 120),
    prefix_tokens=80,
    new_tokens=(1, 100),
    vocabulary=(40, 200),
    deadline_s=(0.01, 0.15),
    dawdle_s=0.02,
    stall_s=3.0,
    stall_tokens=400,
)
FLAGS = (
    *("--model", WRITER, "--max-running", "3", "--max-waiting", "2"),
    *("--cache-memory", "0.0002", "--stream-stall-timeout-s", "1"),
)


@pytest.mark.slow
async def test_every_request_ends_once_and_leaves_nothing_behind(writer: Writer) -> None:
    with ServerProcess(writer.repository, *FLAGS) as server:
        found = await soak(server, WRITER, TRAFFIC)
    assert not found.faults
    assert found.memory.share <= MAX_GROWTH, str(found.memory)
    # It was the traffic that it is meant to be.
    for ending in ("finished", LEFT, STALLED, "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"):
        assert found.traffic.num_ended(ending), found.traffic.endings
    assert found.num_preemptions
    assert found.num_reused_tokens
