"""Runs a load of Generate requests, and says what it found."""

import asyncio
import itertools

import grpc

from enginehouse_client.errors import UnsupportedError
from enginehouse_client.loadtest.drive import drive
from enginehouse_client.loadtest.records import Pace
from enginehouse_client.loadtest.served import ask_model, served_from_model
from enginehouse_client.loadtest.window import Window
from enginehouse_client.messages import Model

from .plan import Planned, check_lengths, plan_random, plan_texts
from .recorder import Recorder
from .result import GenerateResult
from .settings import GenerateSettings
from .summarize import summarize
from .tokenizer import ask_vocabulary, count_tokens
from .transport import open_channel, sender

__all__ = ["run", "run_closed", "run_open"]


async def run_closed(
    settings: GenerateSettings, concurrency: int, stop: asyncio.Event | None = None
) -> GenerateResult:
    """Runs `concurrency` clients that each wait for the end of their answer; see `run`."""
    return await run(settings, Pace("closed", concurrency=concurrency), stop)


async def run_open(
    settings: GenerateSettings,
    rate: float,
    max_in_flight: int = 1024,
    stop: asyncio.Event | None = None,
) -> GenerateResult:
    """Sends requests at random (Poisson) times, `rate` of them a second; see `run`.

    Run it in a `precise_loop`. What is due while `max_in_flight` requests are unanswered is
    counted, not sent.
    """
    return await run(settings, Pace("open", rate=rate, max_in_flight=max_in_flight), stop)


async def run(
    settings: GenerateSettings, pace: Pace, stop: asyncio.Event | None = None
) -> GenerateResult:
    """Sends Generate requests at a pace.

    Args:
        settings: What is sent, and for how long.
        pace: When.
        stop: Ends the run when set; what was done is reported.

    Raises:
        EnginehouseError: Before any request is sent: the model does not answer them, or lengths do
            not fit it.
    """
    model = await ask_model(settings)
    served = served_from_model(model)
    async with open_channel(settings) as channel:
        planned = await _plan(settings, model, channel)
        send_planned = sender(channel, settings)
        window = Window(settings.warmup_s, settings.duration_s)
        recorder = Recorder(window)
        upcoming = itertools.cycle(planned)

        async def send(due: float) -> bool:
            chosen = next(upcoming)
            return await send_planned(chosen, recorder.begin(due, chosen))

        await drive(settings, pace, window, send, stop)
    return summarize(settings, pace, served, window, recorder)


async def _plan(
    settings: GenerateSettings, model: Model, channel: grpc.aio.Channel
) -> list[Planned]:
    if model.task != "generate":
        raise UnsupportedError(
            f"{model.name} is a model of the task {model.task!r}, which answers no Generate"
            " requests: name another with --model"
        )
    max_tokens = model.limits.max_tokens
    check_lengths(settings, max_tokens)
    if settings.prompts:
        return plan_texts(settings, await count_tokens(channel, settings), max_tokens)
    return plan_random(settings, await ask_vocabulary(channel, settings), max_tokens)
