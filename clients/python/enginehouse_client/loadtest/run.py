"""The two kinds of load. Both end by themselves, and early when told to.

*Closed*: so many clients, each sends its next request when the last was answered. A slow server is
sent less. *Open*: requests are due at times that do not depend on the answers, as those of many
users are; latency counts from then, so that a stalled server, or a late generator, cannot hide.
"""

import asyncio
import itertools
import random
import selectors
import time
from collections.abc import Awaitable, Callable, Iterator

from enginehouse_client.aio import AsyncClient
from enginehouse_client.errors import EnginehouseError, NotReadyError

from .payloads import make_payloads
from .result import LoadResult, Pace, Served
from .samples import Recorder
from .settings import LoadSettings
from .summarize import summarize
from .transport import Transport, open_transport
from .window import Window

__all__ = ["precise_loop", "run_closed", "run_open"]

_PAUSE_AFTER_FAILURE_S = 0.01  # a server that refuses at once must not be spun against


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are exact to some 0.1 ms.

    The usual ones, uvloop's too, round to whole milliseconds, which open load would add to each
    latency. Select is slow with many files; a load test has three.
    """
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def run_closed(
    settings: LoadSettings, concurrency: int, stop: asyncio.Event | None = None
) -> LoadResult:
    """Runs `concurrency` clients that each wait for their answers.

    Args:
        settings: What is sent, and for how long.
        concurrency: Number of clients.
        stop: Ends the run when set; what was done is reported.
    """
    pace = Pace("closed", concurrency=concurrency)

    async def clients(load: "_Load") -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(_client(load))

    return await _run(settings, pace, clients, stop)


async def run_open(
    settings: LoadSettings,
    rate: float,
    max_in_flight: int = 1024,
    stop: asyncio.Event | None = None,
) -> LoadResult:
    """Sends requests at random (Poisson) times, `rate` of them a second.

    Run it in a `precise_loop`.

    Args:
        settings: What is sent, and for how long.
        rate: Requests a second, on average.
        max_in_flight: Most requests unanswered at any time; what is due beyond that is counted,
            not sent.
        stop: Ends the run when set; what was done is reported.
    """
    pace = Pace("open", rate=rate, max_in_flight=max_in_flight)

    async def arrivals(load: "_Load") -> None:
        async with asyncio.TaskGroup() as group:
            for due in _due_times(load, rate):
                # Yields also when late, or no answer would ever be read.
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if load.num_in_flight >= max_in_flight:
                    load.recorder.unsent(due)
                else:
                    group.create_task(load.send(due))

    return await _run(settings, pace, arrivals, stop)


class _Load:
    """What the requests of a run share."""

    def __init__(self, settings: LoadSettings, transport: Transport, window: Window) -> None:
        self.start, self.seed = window.start, settings.seed
        self.recorder = Recorder()
        self.num_in_flight = 0
        self._transport, self._window = transport, window
        self._payloads = itertools.cycle(make_payloads(settings))
        self._num_left = settings.num_requests

    def is_over(self, due: float) -> bool:
        """Whether nothing is to be sent at that time any more."""
        return due >= self._window.end or self._num_left == 0

    async def send(self, due: float) -> bool:
        """Sends the next request and records how it went; returns whether it was answered."""
        self.num_in_flight += 1
        sent = time.perf_counter()
        try:
            response = await self._transport.send(next(self._payloads))
        except EnginehouseError as error:
            self.recorder.failed(due, sent, time.perf_counter(), error)
            return False
        else:
            self.recorder.answered(due, sent, time.perf_counter(), response)
            return True
        finally:
            self.num_in_flight -= 1

    def count(self, due: float) -> None:
        """Takes a request that is due off those that are to be measured."""
        if self._num_left is not None and due >= self._window.measured_from:
            self._num_left -= 1


async def _client(load: _Load) -> None:
    while not load.is_over(due := time.perf_counter()):
        load.count(due)
        if not await load.send(due):
            await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)


def _due_times(load: _Load, rate: float) -> Iterator[float]:
    draw = random.Random(load.seed)
    due = load.start + draw.expovariate(rate)
    while not load.is_over(due):
        load.count(due)
        yield due
        due += draw.expovariate(rate)


async def _run(
    settings: LoadSettings,
    pace: Pace,
    drive: Callable[[_Load], Awaitable[None]],
    stop: asyncio.Event | None,
) -> LoadResult:
    served = await _served(settings)
    async with open_transport(settings) as transport:
        window = Window(settings.warmup_s, settings.duration_s)
        load = _Load(settings, transport, window)
        asyncio.get_running_loop().call_later(settings.warmup_s, window.begin)
        driver = asyncio.ensure_future(drive(load))
        stopper = asyncio.create_task((stop or asyncio.Event()).wait())
        await asyncio.wait({driver, stopper}, return_when=asyncio.FIRST_COMPLETED)
        window.finish(is_interrupted=not driver.done(), num_unfinished=load.num_in_flight)
        driver.cancel()
        stopper.cancel()
        for failure in await asyncio.gather(driver, stopper, return_exceptions=True):
            if isinstance(failure, Exception):
                raise failure
    return summarize(settings, pace, served, window, load.recorder)


async def _served(settings: LoadSettings) -> Served:
    async with AsyncClient(settings.target, timeout_s=settings.timeout_s) as client:
        model = await client.get_model(settings.model, settings.version)
    if model.engine is None:
        raise NotReadyError(f"{model.name}/{model.version} is {model.state}: {model.reason}")
    engine = model.engine
    return Served(
        model=model.name,
        version=model.version,
        source=model.source,
        backend=engine.backend,
        target=engine.target,
        precision=engine.precision,
        runtime_version=engine.runtime_version,
        device=engine.device,
    )
