"""Random traffic on a server, and whether it left anything behind."""

import asyncio
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.parser import text_string_to_metric_families

from .memory import Growth, MemoryWatch, growth_of
from .models import build_model
from .processes import Served, run_generate_load
from .traffic import LEFT, Traffic, TrafficSettings, send_traffic

__all__ = ["MAX_GROWTH", "Soaked", "soak", "soak_server"]

MAX_GROWTH = 0.03  # of the mean resident memory, from the second third of the time to the last
_NUM_SAMPLES = 100
_IDLE_S = 30.0

# A cache that holds a few of the longest sequences, and little patience with readers.
_FLAGS = ("--cache-memory", "0.2", "--max-waiting", "32", "--stream-stall-timeout-s", "2")
_LENGTHS = ("--prompt-tokens", "16..400", "--output-tokens", "8..200")


class Server(Protocol):
    """A server's process."""

    address: str
    http_address: str

    @property
    def process_id(self) -> int:
        """Of the operating system."""
        ...


@dataclass(frozen=True, slots=True)
class Soaked:
    """What was found.

    Attributes:
        traffic: What became of the requests.
        faults: The traffic's, and what the server has left or counted otherwise.
        memory: How the server's grew.
        num_preemptions: Sequences that lost their place in the cache.
        num_reused_tokens: Of prompts, found in the cache.
    """

    traffic: Traffic
    faults: tuple[str, ...]
    memory: Growth
    num_preemptions: int
    num_reused_tokens: int


@dataclass(frozen=True, slots=True)
class _Figures:
    """Of the server's metrics page."""

    num_calls: int
    num_sequences: int
    num_used_blocks: int
    num_preemptions: int
    num_reused_tokens: int


async def soak(server: Server, model: str, settings: TrafficSettings) -> Soaked:
    """Sends random traffic to an idle server with no other callers and looks at what is left.

    Raises:
        ExceptionGroup: If a call fails with anything but a status.
    """
    before = await asyncio.to_thread(_figures, server)
    with MemoryWatch(server.process_id, settings.seconds / _NUM_SAMPLES) as watch:
        traffic = await send_traffic(server.address, model, settings)
    after = await _idle_figures(server)
    num_calls = after.num_calls - before.num_calls
    return Soaked(
        traffic,
        (*traffic.faults, *_left(after), *_miscounted(traffic, num_calls)),
        growth_of(watch.samples),
        after.num_preemptions - before.num_preemptions,
        after.num_reused_tokens - before.num_reused_tokens,
    )


def soak_server(shape: str, minutes: float) -> Iterator[str]:
    """Random traffic for minutes, as much as the server bears; says what it has left behind."""
    with Served(build_model(shape, "int8"), *_FLAGS) as server:
        closed = run_generate_load(server, "--concurrency", 12, "--duration", 20, *_LENGTHS)
        rate = closed["throughput"]["requests_per_second"]
        settings = TrafficSettings(
            seconds=60 * minutes,
            rate=rate,
            prompt_tokens=(16, 400),
            prefix_tokens=256,
            new_tokens=(8, 200),
            vocabulary=(1000, 20_000),
            deadline_s=(0.1, 5.0),
            dawdle_s=0.2,
            stall_s=20.0,
            stall_tokens=400,
        )
        found = asyncio.run(soak(server, server.model, settings))
    traffic = found.traffic
    yield f"soak {shape} int8, {minutes:g} minutes, {rate:.1f} random requests/s:"
    for (kind, ending), count in sorted(traffic.endings.items()):
        yield f"  {count} of those that {kind}: {ending}"
    yield f"  {traffic.num_sent} requests, each ended once; faults (bar: none):"
    yield from (f"    {fault}" for fault in found.faults or ("none",))
    yield f"  {found.num_preemptions} preemptions, {found.num_reused_tokens} tokens used again"
    yield f"  memory {found.memory} (bar: {MAX_GROWTH:.0%})"


def _left(figures: _Figures) -> list[str]:
    """What an idle server holds, and should not. Blocks kept for their prefix count as free."""
    found = {"sequences": figures.num_sequences, "used blocks": figures.num_used_blocks}
    return [f"{n} {what} were left" for what, n in found.items() if n]


def _miscounted(traffic: Traffic, num_calls: int) -> list[str]:
    """The server must have ended every request once; it may never have heard of one given up."""
    given_up = traffic.num_ended(LEFT) + traffic.num_ended("DEADLINE_EXCEEDED")
    if traffic.num_sent - given_up <= num_calls <= traffic.num_sent:
        return []
    return [f"the server ended {num_calls} calls, of {traffic.num_sent} that were sent"]


async def _idle_figures(server: Server) -> _Figures:
    """The figures once nothing waits or runs, or as they are if that does not come about."""
    end = time.monotonic() + _IDLE_S
    while True:
        figures = await asyncio.to_thread(_figures, server)
        if not _left(figures) or time.monotonic() > end:
            return figures
        await asyncio.sleep(0.05)


def _figures(server: Server) -> _Figures:
    with urllib.request.urlopen(f"http://{server.http_address}/metrics") as page:
        text = page.read().decode()
    sums: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            is_free = sample.labels.get("state") == "free"
            is_other = "rpc" in sample.labels and not sample.labels["rpc"].startswith("Generate")
            if not is_free and not is_other:
                sums[sample.name.removeprefix("enginehouse_")] += int(sample.value)
    return _Figures(
        sums["rpcs_total"],
        sums["sequences"],
        sums["cache_blocks"],
        sums["preemptions_total"],
        sums["prefix_cache_hit_tokens_total"],
    )
