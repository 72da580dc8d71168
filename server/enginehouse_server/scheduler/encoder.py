"""Runs an encoder: a thread for each lane takes batches and delivers how their inputs ended."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

from enginehouse_server.engine.base import EncoderLane, Logits
from enginehouse_server.errors import (
    DeadlineError,
    DeviceError,
    DeviceLostError,
    EnginehouseError,
    NotReadyError,
)

from .batcher import Batch, EncoderBatcher, Waiting
from .work import Completion, EncoderWork

__all__ = ["Deliver", "EncoderScheduler", "OnBatch", "OnLost"]

_log = logging.getLogger(__name__)

Deliver = Callable[[Sequence[Completion]], None]
OnBatch = Callable[[Batch, float], None]
OnLost = Callable[[DeviceLostError], None]


@dataclass(slots=True, eq=False)
class _Started:
    batch: Batch
    started_at: float
    error: DeviceError | None = None


@dataclass(frozen=True, slots=True)
class _Finished:
    batch: Batch
    started_at: float
    ended_at: float
    outcome: Logits | DeviceError


class EncoderScheduler:
    """Takes work from any thread and delivers completions from its own.

    Every admitted input is delivered exactly once, whatever happens to it. An idle engine starts on
    what arrives at once; a busy one is given its next batch before the last one is delivered.
    """

    def __init__(
        self,
        batcher: EncoderBatcher,
        lanes: Sequence[EncoderLane],
        deliver: Deliver,
        on_batch: OnBatch,
        on_lost: OnLost = lambda _: None,
    ) -> None:
        """Starts a thread for each lane.

        Args:
            batcher: Used by this scheduler alone.
            lanes: Of one engine.
            deliver: Called on a lane's thread with inputs that ended; must not block.
            on_batch: Called on a lane's thread after each batch with its time in seconds.
            on_lost: Called on a lane's thread, perhaps on several, when the device is lost, before
                anybody is told; everything ends with that error then.
        """
        self._batcher, self._deliver = batcher, deliver
        self._on_batch, self._on_lost = on_batch, on_lost
        self._changed = threading.Condition()  # guards the batcher and the five below
        self._is_closing = False
        self._num_running = 0
        self._last_end = 0.0
        self._started: dict[int, _Started] = {}  # by the lane that computes it
        self._lost: DeviceLostError | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(i, lane), name=f"lane-{i}", daemon=True)
            for i, lane in enumerate(lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_waiting(self) -> int:
        """Inputs that wait."""
        return self._batcher.num_waiting

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens that wait."""
        return self._batcher.num_waiting_tokens

    @property
    def computing_since(self) -> float | None:
        """When the oldest of the batches that compute was started; None if none does."""
        with self._changed:
            return min((s.started_at for s in self._started.values()), default=None)

    def check_room(self, num_inputs: int, priority: int, deadline: float) -> None:
        """Raises what `submit` would raise now, before any work is put into the request."""
        with self._changed:
            self._check_open()
            self._batcher.check_room(num_inputs, priority, deadline - monotonic())

    def submit(self, works: Sequence[EncoderWork]) -> None:
        """Admits the inputs of one request.

        Raises:
            OverloadedError: A bound of the queue would be exceeded.
            NotReadyError: The scheduler is closing.
            DeviceLostError: The engine was given up.
        """
        with self._changed:
            self._check_open()
            self._batcher.admit(works, monotonic())
            self._changed.notify()

    def cancel(self, request_ids: Iterable[int]) -> None:
        """Drops what still waits of these requests; it is not delivered. What runs, runs out."""
        with self._changed:
            self._batcher.remove(request_ids)
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Takes nothing new, finishes what was admitted, and stops the threads.

        What is still waiting after `timeout_s` is delivered as NotReadyError.
        """
        end = monotonic() + timeout_s
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            self._changed.wait_for(self._is_idle, timeout_s)
            left = self._batcher.remove_all()
            self._changed.notify_all()
        if left:
            error = NotReadyError("the server stopped before this request's turn; try another")
            self._deliver(_given_up(left, error, monotonic()))
        for thread in self._threads:
            thread.join(max(0.0, end - monotonic()) + 1)

    def abandon(self, error: DeviceLostError) -> None:
        """Gives the engine up: all that waits or computes ends with the error; takes nothing new.

        What its lanes still come back with is dropped.
        """
        with self._changed:
            if self._lost is not None:
                return
            self._lost = error
            left = self._batcher.remove_all()
            started, self._started = list(self._started.values()), {}
            self._num_running -= len(started)
            self._changed.notify_all()
        now = monotonic()
        for one in started:
            self._deliver(_completions(_Finished(one.batch, one.started_at, now, error)))
        if left:
            self._deliver(_given_up(left, error, now))

    def _check_open(self) -> None:
        if self._lost is not None:
            raise DeviceLostError(str(self._lost))
        if self._is_closing:
            raise NotReadyError("the model is being stopped and takes no new requests; try another")

    def _is_idle(self) -> bool:
        return not self._batcher.num_waiting and not self._num_running

    def _run(self, number: int, lane: EncoderLane) -> None:
        finished: _Finished | None = None
        while True:
            batch = self._next(wait=finished is None)
            if batch is None and finished is None:
                return
            started = None if batch is None else self._start(number, lane, batch)
            if finished is not None:
                self._finish(finished)
            finished = None if started is None else self._wait(number, lane, started)

    def _next(self, *, wait: bool) -> Batch | None:
        """The next batch; None if there is none now, or with `wait` only at the end."""
        while True:
            with self._changed:
                if wait:
                    self._changed.wait_for(
                        lambda: self._batcher.num_waiting or self._is_closing or self._lost
                    )
                now = monotonic()
                batch, expired = self._batcher.take(now)
                if batch is not None:
                    self._num_running += 1
                    if self._batcher.num_waiting:  # an arrival of many wakes one lane only
                        self._changed.notify()
                if self._is_closing:  # who closes waits for an empty queue
                    self._changed.notify_all()
            if expired:
                error = DeadlineError("waiting, the request could not be computed by its deadline")
                self._deliver(_given_up(expired, error, now))
            if batch is not None or not wait or self._is_closing or self._lost:
                return batch

    def _start(self, number: int, lane: EncoderLane, batch: Batch) -> _Started:
        started = _Started(batch, monotonic())
        with self._changed:
            self._started[number], started.error = started, self._lost
        if started.error is None:
            try:
                lane.start([m.work for m in batch.members], batch.shape)
            except Exception as error:  # whatever it is, the inputs must end
                started.error = _device_error(error)
        return started

    def _wait(self, number: int, lane: EncoderLane, started: _Started) -> _Finished | None:
        """How the batch ended; None if it was given up meanwhile."""
        batch, started_at = started.batch, started.started_at
        outcome = started.error or _wait(lane)
        ended_at = monotonic()
        with self._changed:
            if self._started.get(number) is not started:
                return None
            del self._started[number]
            interval_s = ended_at - max(started_at, self._last_end)
            self._batcher.observe(batch, interval_s, ended_at - started_at)
            self._last_end = ended_at
        if isinstance(outcome, DeviceLostError) and self._lost is None:
            self._on_lost(outcome)
            self.abandon(outcome)
        return _Finished(batch, started_at, ended_at, outcome)

    def _finish(self, finished: _Finished) -> None:
        try:
            self._deliver(_completions(finished))
            self._on_batch(finished.batch, finished.ended_at - finished.started_at)
        except Exception:  # the fault of who listens: the lane must serve the others
            _log.exception("a batch could not be delivered")
        with self._changed:
            self._num_running -= 1
            if self._is_closing:
                self._changed.notify_all()


def _wait(lane: EncoderLane) -> Logits | DeviceError:
    try:
        return lane.wait()
    except Exception as error:
        return _device_error(error)


def _device_error(error: Exception) -> DeviceError:
    if isinstance(error, DeviceError):
        return error
    _log.error("the engine failed on a batch", exc_info=error)
    return DeviceError("the engine failed on this batch; the server's log says more")


def _completions(finished: _Finished) -> list[Completion]:
    batch, outcome = finished.batch, finished.outcome
    return [
        Completion(
            request_id=member.work.request_id,
            position=member.work.position,
            logits=None if isinstance(outcome, DeviceError) else outcome[row],
            error=outcome if isinstance(outcome, DeviceError) else None,
            queued_at=member.queued_at,
            started_at=finished.started_at,
            ended_at=finished.ended_at,
            batch_size=len(batch.members),
            padding_fraction=batch.padding_fraction,
        )
        for row, member in enumerate(batch.members)
    ]


def _given_up(left: Sequence[Waiting], error: EnginehouseError, now: float) -> list[Completion]:
    return [
        Completion(w.work.request_id, w.work.position, None, error, w.queued_at, now, now)
        for w in left
    ]
