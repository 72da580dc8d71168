"""Counts the requests that are being answered, so that a stop knows when none is left."""

import asyncio

__all__ = ["InFlight"]


class InFlight:
    """A context for each request. Open streams on which nothing is asked do not count."""

    def __init__(self) -> None:
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self._count += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._idle.set()

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Returns when no request is being answered, at the latest after the timeout."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return
