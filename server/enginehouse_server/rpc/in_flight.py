"""Counts the requests that are being answered, so that a stop knows when none is left."""

import asyncio

from .call import Context

__all__ = ["InFlight"]


class InFlight:
    """Requests whose answers are not written yet. A stream on which nothing is asked is none."""

    def __init__(self) -> None:
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """A request has come; `end` must be called once for it."""
        self._count += 1
        self._idle.clear()

    def end(self) -> None:
        """A request's answer was written, or nobody waits for it any more."""
        self._count -= 1
        if not self._count:
            self._idle.set()

    def hold(self, context: Context) -> None:
        """Counts a call as one request until gRPC is done with it: its answer is then written."""
        self.begin()
        context.add_done_callback(lambda _: self.end())  # type: ignore[arg-type]

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Returns when no request is being answered, at the latest after the timeout."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return
