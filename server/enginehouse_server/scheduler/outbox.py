"""The gate through which all that a decoder's sequences give leaves: each ends exactly once.

It knows which sequences were admitted and have not ended, so that it can end them itself when the
thread that steps the engine does not come back, or has failed in a way that nobody foresaw.
"""

import threading
from collections.abc import Sequence

from enginehouse_server.errors import EnginehouseError

from .generate_work import DeliverTokens, Emitted, Ending, GenerateWork

__all__ = ["Outbox"]


class Outbox:
    """Delivers, from any thread, one call at a time."""

    def __init__(self, deliver: DeliverTokens) -> None:
        self._deliver = deliver
        self._lock = threading.Lock()  # held while delivering
        self._num_tokens: dict[tuple[int, int], int] = {}  # delivered, of those that have not ended
        self._is_closed = False

    def expect(self, works: Sequence[GenerateWork]) -> None:
        """Notes sequences that were admitted, before anything of them is delivered."""
        with self._lock:
            self._num_tokens.update(((w.request_id, w.index), 0) for w in works)

    def deliver(self, emitted: Sequence[Emitted]) -> None:
        """Delivers what sequences gave; nothing once it is closed."""
        with self._lock:
            if self._is_closed or not emitted:
                return
            for one in emitted:
                key = one.request_id, one.index
                if one.ending is not None:
                    del self._num_tokens[key]
                else:
                    self._num_tokens[key] += 1
            self._deliver(emitted)

    def end_all(self, error: EnginehouseError, now: float) -> None:
        """Ends every sequence that has not ended, with an error."""
        with self._lock:
            self._end_all(error, now, is_cancelled=False)

    def fail(self, error: EnginehouseError, now: float) -> None:
        """Ends every sequence that has not ended, with an error; delivers no more."""
        with self._lock:
            self._end_all(error, now, is_cancelled=False)
            self._is_closed = True

    def close(self, error: EnginehouseError, now: float) -> None:
        """Ends those that have tokens as cancelled, the others with an error; delivers no more."""
        with self._lock:
            self._end_all(error, now, is_cancelled=True)
            self._is_closed = True

    def _end_all(self, error: EnginehouseError, now: float, *, is_cancelled: bool) -> None:
        emitted = []
        for (request_id, index), num_tokens in self._num_tokens.items():
            is_failed = not (is_cancelled and num_tokens)
            ending = Ending(
                reason=None if is_failed else "cancelled",
                error=error if is_failed else None,
                num_cached_tokens=0,
                num_generated=num_tokens,
                num_preemptions=0,
                started_at=now,
                first_token_at=now,
                ended_at=now,
            )
            emitted.append(Emitted(request_id, index, None, ending=ending))
        if emitted and not self._is_closed:
            self._deliver(emitted)
        self._num_tokens.clear()  # only now: what was not delivered is tried once more
