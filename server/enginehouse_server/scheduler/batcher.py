"""Which waiting inputs run together next. Knows no threads and no clock: times are passed in.

Inputs wait in order of service: by priority, then arrival. The next batch always holds the first
of them, so nothing starves; who joins it is chosen among the first few (the window). These are
sorted by length and cut into batches so that computing all of them takes the least predicted time
(a shortest path over the cut points, by dynamic programming); the batch with the first input runs,
and the rest is cut anew next time, with what arrived meanwhile. Padding, padded rows and the cost
of starting a batch weigh in it what they were measured to cost.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from enginehouse_server.engine.base import Shape
from enginehouse_server.errors import OverloadedError

from .grid import LatencyModel, ShapeGrid
from .work import EncoderWork, Policy

__all__ = ["Batch", "EncoderBatcher", "Taken", "Waiting"]

_MIN_REQUESTS = 8  # whose inputs are always in the window
_MAX_WINDOW = 96  # inputs; bounds the time of a choice
_PACE_MEMORY = 0.95  # what a batch leaves of the weight of those before it
_LONGEST_WAIT = 1.5  # of the predicted one: batches are cut by length, so some wait longer


class Waiting(NamedTuple):
    """An admitted input; sorts in the order of service."""

    order: tuple[int, int]  # (-priority, number of arrival): unique, so the rest is never compared
    queued_at: float
    bucket: int
    num_tokens: int
    work: EncoderWork


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs to compute together, and the shape they are padded to."""

    shape: Shape
    members: Sequence[Waiting]

    @property
    def num_tokens(self) -> int:
        """Tokens of the inputs, without padding."""
        return sum(m.num_tokens for m in self.members)

    @property
    def padding_fraction(self) -> float:
        """Share of the computed tokens that are padding, padded rows included."""
        return 1 - self.num_tokens / self.shape.num_tokens


class Taken(NamedTuple):
    """What left the queue at a turn: a batch, if anything waited, and what came too late."""

    batch: Batch | None
    expired: Sequence[Waiting]


class EncoderBatcher:
    """Waiting inputs, bounded, and the choice of the next batch."""

    def __init__(self, grid: ShapeGrid, latency: LatencyModel, policy: Policy) -> None:
        self._grid, self._seconds, self._policy = grid, latency.seconds, policy
        self._waiting: list[Waiting] = []
        self._num_admitted = 0
        # The pace of all lanes together, as decaying sums of seconds and of real tokens.
        self._busy_s, self._busy_tokens = latency.seconds_per_token * 64, 64.0
        # How much longer a batch takes here than predicted: lanes share the processor.
        self._compute_s, self._predicted_s = 1e-3, 1e-3
        self.num_waiting_tokens = 0

    @property
    def num_waiting(self) -> int:
        """Inputs that wait."""
        return len(self._waiting)

    def admit(self, works: Sequence[EncoderWork], now: float) -> None:
        """Lets the inputs of one request wait; all of them or none.

        Args:
            works: Inputs no longer than the grid's `max_tokens`, of one priority and deadline.
            now: The time, seconds.

        Raises:
            OverloadedError: They would exceed a bound of the policy, or would still wait at their
                deadline.
        """
        compute_s = max(self._alone_s(self._grid.bucket_of(len(work.ids))) for work in works)
        self.check_room(len(works), works[0].priority, works[0].deadline - now - compute_s)
        for work in works:
            num_tokens = len(work.ids)
            order = (-work.priority, self._num_admitted)
            bucket = self._grid.bucket_of(num_tokens)
            insort(self._waiting, Waiting(order, now, bucket, num_tokens, work))
            self._num_admitted += 1
            self.num_waiting_tokens += num_tokens

    def check_room(self, num_inputs: int, priority: int, time_left_s: float) -> None:
        """Raises OverloadedError if a request of that many inputs would not be admitted.

        An empty queue takes any request: one larger than the bound would else never be served.
        """
        if not self._waiting:
            return
        wait_s = self._predicted_wait_s(priority)
        found, policy = self.num_waiting, self._policy
        if found + num_inputs > policy.max_queue:
            limit = f"{num_inputs} more would exceed the limit of {policy.max_queue} (--max-queue)"
            raise OverloadedError(f"{found} inputs wait and {limit}; try again later", wait_s)
        if wait_s > policy.max_queue_s:
            limit = f"longer than the limit of {policy.max_queue_s:.2f} s (--max-queue-s)"
            text = f"{found} inputs wait, for about {wait_s:.2f} s, {limit}; try again later"
            raise OverloadedError(text, wait_s - policy.max_queue_s)
        longest_s = _LONGEST_WAIT * wait_s
        if longest_s > time_left_s:
            left = f"the time left to the deadline, {time_left_s:.2f} s"
            text = f"{found} inputs wait, for up to {longest_s:.2f} s, longer than {left}"
            raise OverloadedError(f"{text}; try again later, or allow more", wait_s)

    def remove(self, request_ids: Iterable[int]) -> list[Waiting]:
        """Takes out what still waits of these requests."""
        ids = set(request_ids)
        gone = [w for w in self._waiting if w.work.request_id in ids]
        self._discard(gone)
        return gone

    def remove_all(self) -> list[Waiting]:
        """Takes out everything that waits."""
        gone, self._waiting, self.num_waiting_tokens = self._waiting, [], 0
        return gone

    def take(self, now: float) -> Taken:
        """Takes the next batch out of the queue, and what could not be done by its deadline."""
        expired: list[Waiting] = []
        while self._waiting:
            window = self._window()
            late = [w for w in window if w.work.deadline <= now + self._alone_s(w.bucket)]
            if not late:
                batch = self._batch_with(window[0], window)
                self._discard(batch.members)
                return Taken(batch, expired)
            self._discard(late)
            expired += late
        return Taken(None, expired)

    def observe(self, batch: Batch, interval_s: float, compute_s: float) -> None:
        """Learns the pace.

        Args:
            batch: What was computed.
            interval_s: How long after the batch before it, of any lane, it came out; without
                pauses in which nothing was computed.
            compute_s: How long it was in the engine.
        """
        self._busy_s = _PACE_MEMORY * self._busy_s + interval_s
        self._busy_tokens = _PACE_MEMORY * self._busy_tokens + batch.num_tokens
        predicted_s = self._seconds[batch.members[-1].bucket][len(batch.members)]
        self._compute_s = _PACE_MEMORY * self._compute_s + compute_s
        self._predicted_s = _PACE_MEMORY * self._predicted_s + predicted_s

    def _alone_s(self, bucket: int) -> float:
        """What an input takes in the engine at least."""
        return self._seconds[bucket][1] * self._compute_s / self._predicted_s

    def _window(self) -> list[Waiting]:
        most = self._waiting[:_MAX_WINDOW]
        return most[: max(int(len(self._waiting) * self._policy.window), _size_of_first(most))]

    def _batch_with(self, first: Waiting, window: list[Waiting]) -> Batch:
        """The batch with `first` in it, of the cut of the window that takes the least time."""
        items = sorted(window, key=attrgetter("num_tokens"))
        sizes = self._cut([item.bucket for item in items])
        end = len(items)
        position = items.index(first)
        while end - sizes[end] > position:
            end -= sizes[end]
        members = items[end - sizes[end] : end]
        return Batch(self._grid.shape_of(members[-1].bucket, len(members)), members)

    def _cut(self, buckets: list[int]) -> list[int]:
        """For each `n`, how many of the first `n` (ascending) are best in one batch, the last."""
        equal = self._policy.equal_lengths
        least, sizes = [0.0], [0]
        for end, bucket in enumerate(buckets, 1):
            first = bisect_left(buckets, bucket, 0, end) if equal else 0
            seconds = self._seconds[bucket]
            most = min(end - first, len(seconds) - 1)
            # zip over (time of the batch of `size`, time of all before it), size ascending
            choices = zip(islice(seconds, 1, most + 1), reversed(least), strict=False)
            best, size = min((cost + before, n) for n, (cost, before) in enumerate(choices, 1))
            least.append(best)
            sizes.append(size)
        return sizes

    def _predicted_wait_s(self, priority: int) -> float:
        pace = self._busy_s / self._busy_tokens
        ahead = bisect_right(self._waiting, -priority, key=lambda w: w.order[0])
        if ahead == len(self._waiting):
            return self.num_waiting_tokens * pace
        return sum(w.num_tokens for w in self._waiting[:ahead]) * pace

    def _discard(self, gone: Sequence[Waiting]) -> None:
        for waiting in gone:
            del self._waiting[bisect_left(self._waiting, waiting)]
            self.num_waiting_tokens -= waiting.num_tokens


def _size_of_first(waiting: Sequence[Waiting]) -> int:
    """How many inputs the first `_MIN_REQUESTS` requests have.

    A request ends with its last input, so the order within requests costs nobody anything.
    """
    ids: set[int] = set()
    for size, item in enumerate(waiting):
        ids.add(item.work.request_id)
        if len(ids) > _MIN_REQUESTS:
            return size
    return len(waiting)
