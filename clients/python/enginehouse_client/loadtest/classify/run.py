"""Runs a load of Classify requests, and says what it found."""

import asyncio
import itertools
import time

from enginehouse_client.errors import EnginehouseError
from enginehouse_client.loadtest.drive import drive
from enginehouse_client.loadtest.records import Pace
from enginehouse_client.loadtest.served import ask_model, served_from_model
from enginehouse_client.loadtest.window import Window

from .payloads import make_payloads
from .recorder import Recorder
from .result import LoadResult
from .settings import LoadSettings
from .summarize import summarize
from .transport import open_transport

__all__ = ["run", "run_closed", "run_open"]


async def run_closed(
    settings: LoadSettings, concurrency: int, stop: asyncio.Event | None = None
) -> LoadResult:
    """Runs `concurrency` clients that each wait for their answers.

    Args:
        settings: What is sent, and for how long.
        concurrency: Number of clients.
        stop: Ends the run when set; what was done is reported.
    """
    return await run(settings, Pace("closed", concurrency=concurrency), stop)


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
    return await run(settings, Pace("open", rate=rate, max_in_flight=max_in_flight), stop)


async def run(settings: LoadSettings, pace: Pace, stop: asyncio.Event | None = None) -> LoadResult:
    """Sends Classify requests at a pace.

    Raises:
        EnginehouseError: If the model does not answer requests, before any was sent.
    """
    served = served_from_model(await ask_model(settings))
    payloads = itertools.cycle(make_payloads(settings))
    recorder = Recorder()
    async with open_transport(settings) as transport:

        async def send(due: float) -> bool:
            sent = time.perf_counter()
            try:
                response = await transport.send(next(payloads))
            except EnginehouseError as error:
                recorder.failed(due, sent, time.perf_counter(), error)
                return False
            recorder.answered(due, sent, time.perf_counter(), response)
            return True

        window = Window(settings.warmup_s, settings.duration_s)
        await drive(settings, pace, window, send, stop)
    return summarize(settings, pace, served, window, recorder.samples())
