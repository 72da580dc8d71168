"""Which failed calls are tried again, and when. Makes no calls and does not sleep."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from .errors import (
    ConnectionFailedError,
    DeviceError,
    EnginehouseError,
    NotReadyError,
    OverloadedError,
)

__all__ = ["Attempts", "RetryBudget", "RetryPolicy"]

_RETRYABLE = (ConnectionFailedError, DeviceError, NotReadyError, OverloadedError)
# Not CANCELLED: a client that was closed, or a server that gives a call up, means it.
_RETRYABLE_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a call is tried, and how long is waited in between.

    Only what another try may change is tried again: a server that was not reached, is not ready or
    is full. The wait is drawn evenly between 0 and a bound that doubles with each attempt, and
    starts only when a server that said "come back in t" may be asked again. No wait outlasts the
    call's timeout.

    Attributes:
        max_attempts: Tries in all; 1 never tries again.
        initial_backoff_s: Bound of the wait after the first attempt.
        max_backoff_s: What the bound grows to.
    """

    max_attempts: int = 4
    initial_backoff_s: float = 0.05
    max_backoff_s: float = 2.0

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts}")
        if not 0 <= self.initial_backoff_s <= self.max_backoff_s:
            raise ValueError(
                "backoffs must be 0 <= initial_backoff_s <= max_backoff_s,"
                f" not {self.initial_backoff_s} and {self.max_backoff_s}"
            )

    def max_wait_s(self, num_attempts: int) -> float:
        """Bound of the wait after so many attempts."""
        doublings = min(num_attempts - 1, 64)  # beyond, a float would overflow
        return min(self.max_backoff_s, self.initial_backoff_s * 2.0**doublings)


class RetryBudget:
    """Keeps one client's retries from hammering a server that is down.

    Half of `capacity` may be spent at once; then there is about one retry for ten calls that
    succeed. A server that says when to come back sets the pace itself and is not counted.
    """

    def __init__(self, capacity: float = 20.0, refill: float = 0.1) -> None:
        self._capacity = self._left = capacity
        self._refill = refill

    def add(self) -> None:
        """A call succeeded."""
        self._left = min(self._capacity, self._left + self._refill)

    def spend(self) -> bool:
        """A call failed; returns whether it may be tried again."""
        self._left = max(0.0, self._left - 1)
        return self._left >= self._capacity / 2


class Attempts:
    """The attempts of one call: how long each may take, and whether there is another.

    Args:
        policy: How often, and how far apart.
        budget: Shared by the calls of a client.
        timeout_s: Time for all attempts together; None is without limit.
        clock: Gives seconds, monotonic.
        draw: Gives numbers in 0 to 1.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        budget: RetryBudget,
        timeout_s: float | None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._policy, self._budget = policy, budget
        self._clock, self._draw = clock, draw
        self._deadline = None if timeout_s is None else clock() + timeout_s
        self._num_made = 0

    def remaining_s(self) -> float | None:
        """Time left for the next attempt; None is without limit."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def succeeded(self) -> None:
        """The last attempt succeeded."""
        self._budget.add()

    def wait_after(self, error: EnginehouseError) -> float | None:
        """How long to wait before another attempt, seconds; None if there is to be none."""
        self._num_made += 1
        if not isinstance(error, _RETRYABLE) or error.code not in _RETRYABLE_CODES:
            return None
        if self._num_made >= self._policy.max_attempts:
            return None
        if error.retry_after_s is None and not self._budget.spend():
            return None
        wait = self._draw() * self._policy.max_wait_s(self._num_made) + (error.retry_after_s or 0.0)
        remaining = self.remaining_s()
        return wait if remaining is None or wait < remaining else None
