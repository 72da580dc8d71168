"""Finds engines that do not come back from what they compute. Knows no clock and no engine."""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

__all__ = ["HangWatch"]

K = TypeVar("K", bound=Hashable)


class HangWatch(Generic[K]):
    """Adds up how long each engine was seen at the same work.

    Only time that this process ran for counts: one that was stopped, or starved of processors, sees
    all its engines late at once, and none of them hangs.
    """

    def __init__(self, limit_s: float, interval_s: float) -> None:
        """Takes the seconds after which an engine hangs, and how often somebody looks."""
        self._limit_s, self._most_s = limit_s, 2 * interval_s
        self._seen: dict[K, tuple[float, float]] = {}  # since when, and seconds seen since then
        self._looked_at: float | None = None

    def look(self, computing_since: Mapping[K, float | None], now: float) -> list[K]:
        """Names the engines that hang.

        Args:
            computing_since: When each began with what it computes now; None for an idle one.
            now: On the same clock.
        """
        passed = self._most_s if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        seen: dict[K, tuple[float, float]] = {}
        for key, since in computing_since.items():
            if since is None:
                continue
            before, seconds = self._seen.get(key, (since, 0.0))
            seconds = seconds if before == since else 0.0
            seen[key] = since, seconds + max(0.0, min(passed, now - since, self._most_s))
        self._seen = seen
        return [key for key, (_, seconds) in seen.items() if seconds >= self._limit_s]
