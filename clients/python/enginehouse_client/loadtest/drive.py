"""The two paces of a load, whatever is sent. Both end by themselves, and early when told to.

*Closed*: so many clients, each sends its next request when the last was answered. A slow server is
sent less. *Open*: requests are due at times that do not depend on the answers, as those of many
users are; latency counts from then, so that a stalled server, or a late generator, cannot hide.
"""

import asyncio
import random
import selectors
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

from .records import Pace
from .settings import RunSettings
from .window import Window

__all__ = ["Send", "drive", "precise_loop"]

Send: TypeAlias = Callable[[float], Awaitable[bool]]
"""Sends the next request, due at the time given, and takes down how it ended; returns whether it
went well. It is cancelled when the run is told to stop, and then takes down nothing."""

_PAUSE_AFTER_FAILURE_S = 0.01  # a server that refuses at once must not be spun against


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are exact to some 0.1 ms.

    The usual ones, uvloop's too, round to whole milliseconds, which open load would add to each
    latency. Select is slow with many files; a load test has three.
    """
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def drive(
    settings: RunSettings, pace: Pace, window: Window, send: Send, stop: asyncio.Event | None
) -> None:
    """Runs a load to its end; the window then says how many requests were due.

    Args:
        settings: For how long, and the seed of random times.
        pace: When requests are due. Run the open one in a `precise_loop`.
        window: The span of the run, just begun.
        send: What sends a request.
        stop: Ends the run when set; what is unanswered then counts as unfinished.
    """
    load = _Load(settings, window, send)
    asyncio.get_running_loop().call_later(settings.warmup_s, window.begin)
    driver = asyncio.ensure_future(
        _closed(load, pace.concurrency or 1)
        if pace.mode == "closed"
        else _open(load, pace.rate or 1.0, pace.max_in_flight or 1)
    )
    stopper = asyncio.create_task((stop or asyncio.Event()).wait())
    await asyncio.wait({driver, stopper}, return_when=asyncio.FIRST_COMPLETED)
    # In one go: a request that ended between the two would be counted twice, or not at all.
    window.finish(not driver.done(), load.num_measured_in_flight)
    driver.cancel()
    stopper.cancel()
    for failure in await asyncio.gather(driver, stopper, return_exceptions=True):
        if isinstance(failure, Exception):
            raise failure


class _Load:
    """Which requests are still to be sent, and how many are unanswered."""

    def __init__(self, settings: RunSettings, window: Window, send: Send) -> None:
        self.start, self.seed = window.start, settings.seed
        self.num_in_flight = self.num_measured_in_flight = 0
        self._window, self._send = window, send
        self._num_left = settings.num_requests

    def is_over(self, due: float) -> bool:
        """Whether nothing is to be sent at that time any more."""
        return due >= self._window.end or self._num_left == 0

    def begin(self, due: float) -> None:
        """A request's time has come: it is unanswered until `send` of it returns."""
        self._count(due)
        self.num_in_flight += 1
        self.num_measured_in_flight += self._window.measures(due)

    def skip(self, due: float) -> None:
        """A request's time has come, but too many are unanswered."""
        self._count(due)
        self._window.num_unsent += self._window.measures(due)

    async def send(self, due: float) -> bool:
        """Sends a request that was begun; returns whether it was answered."""
        try:
            return await self._send(due)
        finally:
            self.num_in_flight -= 1
            self.num_measured_in_flight -= self._window.measures(due)

    def _count(self, due: float) -> None:
        if not self._window.measures(due):
            return
        self._window.num_due += 1
        if self._num_left is not None:
            self._num_left -= 1


async def _closed(load: _Load, concurrency: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(_client(load))


async def _client(load: _Load) -> None:
    while not load.is_over(due := time.perf_counter()):
        load.begin(due)
        if not await load.send(due):
            await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)


async def _open(load: _Load, rate: float, max_in_flight: int) -> None:
    async with asyncio.TaskGroup() as group:
        for due in _due_times(load, rate):
            # Yields also when late, or no answer would ever be read.
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if load.num_in_flight >= max_in_flight:
                load.skip(due)
            else:
                load.begin(due)
                group.create_task(load.send(due))


def _due_times(load: _Load, rate: float) -> Iterator[float]:
    draw = random.Random(load.seed)
    due = load.start + draw.expovariate(rate)
    while not load.is_over(due):
        yield due
        due += draw.expovariate(rate)
