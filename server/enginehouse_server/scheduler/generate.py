"""Runs a decoder: a thread steps its engine and delivers what each step gave.

While the engine computes, the thread does what does not depend on the logits: it delivers the last
step's tokens, takes in what arrived or was cancelled, and prepares what the next choices need.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import (
    DecoderEngine,
    ReducedLogits,
    ReducingDecoder,
    StepItem,
)
from enginehouse_server.errors import (
    DeviceError,
    DeviceLostError,
    NotReadyError,
    UnsupportedError,
)
from enginehouse_server.sampling import StructureCompiler

from .admission import GenerateAdmission
from .encoder import OnLost
from .generate_policy import GeneratePolicy, StepFigures
from .generate_work import DeliverTokens, Emitted, FinishReason, GenerateWork
from .outbox import Outbox
from .pace import StepPace
from .planner import Step
from .roster import Arrival, Roster

__all__ = ["GenerateScheduler", "OnStep"]

OnStep = Callable[[StepFigures], None]

_GRACE_S = 1.0  # for a step that still computes when closing gives up
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Cancel:
    request_id: int
    index: int | None
    reason: FinishReason


class _Done(NamedTuple):
    """A step that was computed, to be told of while the next one is."""

    step: Step
    seconds: float


class GenerateScheduler:
    """Takes sequences from any thread and delivers their tokens from its own.

    Every admitted sequence ends exactly once, whatever happens to it. Sequences join and leave
    between steps.
    """

    def __init__(
        self,
        engine: DecoderEngine,
        compiler: StructureCompiler | None,
        policy: GeneratePolicy,
        pace: StepPace,
        deliver: DeliverTokens,
        on_step: OnStep,
        on_lost: OnLost = lambda _: None,
    ) -> None:
        """Starts the thread.

        Args:
            engine: Used by this scheduler's thread alone from now on; not closed by it.
            compiler: Of the model's tokenizer; None if that does not serve structured output.
            policy: Bounds.
            pace: Of the engine; learns from each step.
            deliver: Called on the thread with what a step gave. Must neither block nor call the
                scheduler.
            on_step: Called on the thread after each step; must not block.
            on_lost: Called on the thread when the device is lost, before anybody is told;
                everything ends with that error then.
        """
        self._engine, self._compiler, self._policy = engine, compiler, policy
        self._pace, self._on_step, self._on_lost = pace, on_step, on_lost
        self._reducing = engine if isinstance(engine, ReducingDecoder) else None
        self._admission = GenerateAdmission(engine.limits, policy)
        self._roster = self._new_roster()
        self._outbox = Outbox(deliver)
        self._done: _Done | None = None  # the last step, until it was told of
        self._pending: list[Emitted] = []  # what sequences gave, in order, not yet delivered
        self._is_computing = False
        self._step_began_at: float | None = None  # while the engine has one
        self._items: list[StepItem] = []  # of the last step
        self._changed = threading.Condition()  # guards the admission and the five below
        self._arrived: list[Arrival] = []
        self._cancelled: list[_Cancel] = []
        self._is_closing = self._gives_up = False
        self._lost: DeviceLostError | None = None
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Sequences that wait."""
        return len(self._arrived) + len(self._roster.planner.waiting)

    @property
    def num_running(self) -> int:
        """Sequences that have a place in the cache."""
        return len(self._roster.planner.running)

    @property
    def num_blocks_used(self) -> int:
        """Blocks of the cache that sequences have."""
        return self._roster.planner.num_blocks_used

    @property
    def computing_since(self) -> float | None:
        """When the step that the engine has was begun; None if it has none."""
        return self._step_began_at

    def check_room(self, works: Sequence[GenerateWork]) -> None:
        """Raises what `submit` would raise now, but for what is wrong with a structure."""
        with self._changed:
            self._check_room(works)

    def submit(self, works: Sequence[GenerateWork]) -> None:
        """Admits the sequences of one request; all of them or none.

        Args:
            works: Of one priority and deadline. A structure that was not compiled before is
                compiled now, on the caller's thread: `StructureCompiler.compile` it elsewhere.

        Raises:
            InvalidRequestError: A sequence could not end even alone, or its structure is wrong.
            UnsupportedError: There is a structure, and the model's tokenizer does not serve one.
            OverloadedError: A bound of the queue would be exceeded, or the deadline passed.
            NotReadyError: The scheduler is closing.
            DeviceLostError: The engine was given up.
        """
        arrivals = [self._arrival(work) for work in works]
        with self._changed:
            self._check_room(works)
            self._outbox.expect(works)
            self._arrived += arrivals
            self._changed.notify()

    def cancel(
        self, request_id: int, index: int | None = None, reason: FinishReason = "cancelled"
    ) -> None:
        """Ends a sequence, or with no index all of a request, before the next step.

        What has ended already is not told again. Others are delivered with `reason`; with
        "cancelled" what was computed for them counts as wasted.
        """
        with self._changed:
            self._cancelled.append(_Cancel(request_id, index, reason))
            self._changed.notify()

    def abandon(self, error: DeviceLostError) -> None:
        """Gives the engine up: every sequence ends with the error, and nothing new is taken.

        What the engine still comes back with is dropped.
        """
        with self._changed:
            self._lost = self._lost or error
            self._step_began_at = None
            self._changed.notify()
        self._outbox.fail(error, monotonic())

    def close(self, timeout_s: float) -> None:
        """Takes nothing new, finishes what was admitted, and stops the thread.

        What has not ended after `timeout_s` is delivered: as cancelled if it had tokens, else with
        NotReadyError; also when the engine does not come back from a step.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self._gives_up = True
        self._thread.join(_GRACE_S)
        # Nothing is left unless the engine hangs.
        self._outbox.close(_stopped(), monotonic())

    def _arrival(self, work: GenerateWork) -> Arrival:
        self._admission.check_possible(work)
        if work.structure is None:
            return Arrival(work)
        if self._compiler is None:
            raise UnsupportedError(
                "this model's tokenizer does not serve structured output; leave `structure` out"
            )
        return Arrival(work, self._compiler.compile(work.structure))

    def _check_room(self, works: Sequence[GenerateWork]) -> None:
        if self._lost is not None:
            raise DeviceLostError(str(self._lost))
        if self._is_closing:
            raise NotReadyError("the model is being stopped and takes no new requests; try another")
        for work in works:
            self._admission.check_possible(work)
        priority, deadline = works[0].priority, works[0].deadline
        planner = self._roster.planner
        waiting = [s.work for s in planner.waiting.copy()] + [a.work for a in self._arrived]
        num_ahead = sum(work.priority >= priority for work in waiting)
        self._admission.check_room(
            len(works), deadline - monotonic(), len(waiting), num_ahead, planner.num_places
        )

    def _run(self) -> None:
        try:
            self._step_until_closed()
        except Exception:
            _log.critical("the thread of a decoder has failed for good", exc_info=True)
        finally:
            with self._changed:
                self._is_closing = True
            # Nothing is left unless the thread has failed.
            self._outbox.close(DeviceError("no more steps can be computed"), monotonic())

    def _step_until_closed(self) -> None:
        is_over = False
        while not is_over and self._lost is None:
            try:
                is_over = not self._take_in(wait=not (self._done or self._pending))
                if not is_over:
                    self._turn()
            except Exception as error:  # whatever it is, those in flight must hear of it
                self._start_anew(error)

    def _take_in(self, *, wait: bool) -> bool:
        """Lets in what arrived and out what was cancelled or expired; False if all is over."""
        roster = self._roster
        with self._changed:
            if wait and not roster.planner.num_live:
                self._changed.wait_for(
                    lambda: self._arrived or self._cancelled or self._is_closing or self._lost
                )
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, []
            is_closing, gives_up = self._is_closing, self._gives_up
        now = monotonic()
        for arrival in arrived:
            roster.add(arrival)
        for one in cancelled:
            self._pending += roster.cancel(one.request_id, one.index, one.reason, now)
        self._pending += roster.expire(now)
        if gives_up:
            self._pending += roster.give_up(_stopped(), now)
        return not (is_closing and wait and not roster.planner.num_live and not self._pending)

    def _turn(self) -> None:
        """Computes the next step, and meanwhile tells of the one before."""
        step = self._roster.planner.plan()
        started_at = monotonic()
        if step is not None:
            self._start(step, started_at)
        elif not (self._done or self._pending) and self._roster.planner.num_live:
            raise RuntimeError("sequences wait, and none can run")
        self._deliver()
        if self._done is not None:
            self._tell(self._done)
            self._done = None
        if step is None:
            return
        self._roster.prepare(step)
        self._take_in(wait=False)
        self._deliver()
        self._is_computing = False  # also when waiting fails
        logits = self._wait()
        ended_at = monotonic()
        self._pending += self._roster.finish(step, logits, ended_at)
        self._step_began_at = None  # what was wanted of the logits has come, too
        self._done = _Done(step, ended_at - started_at)

    def _start(self, step: Step, now: float) -> None:
        self._step_began_at = now
        if step.cleared:
            self._engine.clear_blocks(step.cleared)
        for source, target in step.copies:
            self._engine.copy_block(source, target)
        self._items = step.items
        self._engine.start(self._items)
        self._is_computing = True
        for part in step.parts:
            part.sequence.note_start(now)

    def _wait(self) -> Logits | ReducedLogits:
        if self._reducing is not None and any(item.is_reduced for item in self._items):
            return self._reducing.wait_reduced()
        return self._engine.wait()

    def _new_roster(self) -> Roster:
        return Roster(self._engine.limits, self._policy, self._pace.prompt_tokens_beside)

    def _deliver(self) -> None:
        emitted, self._pending = self._pending, []
        self._outbox.deliver(emitted)

    def _tell(self, done: _Done) -> None:
        with self._changed:
            self._admission.observe(done.seconds, self._roster.take_left())
        planner, step = self._roster.planner, done.step
        num_prompt_tokens = sum(p.num_tokens for p in step.parts if p.num_tokens > 1)
        num_decode_tokens = sum(p.num_tokens == 1 for p in step.parts)
        self._pace.observe(num_decode_tokens, num_prompt_tokens, done.seconds)
        self._on_step(
            StepFigures(
                seconds=done.seconds,
                num_prompt_tokens=num_prompt_tokens,
                num_decode_tokens=num_decode_tokens,
                num_running=len(planner.running),
                num_waiting=len(planner.waiting),
                num_blocks_used=planner.num_blocks_used,
                num_reused_tokens=step.num_reused_tokens,
                num_preemptions=step.num_preemptions,
                num_wasted_tokens=self._roster.take_wasted(),
                num_repeated_tokens=step.num_repeated_tokens,
            )
        )

    def _start_anew(self, error: Exception) -> None:
        """Fails all that is in flight; what the cache holds is not relied on any more."""
        self._done = None
        if self._is_computing and not isinstance(error, DeviceError):
            with suppress(Exception):  # the first failure is the one to tell of
                self._engine.wait()
        self._is_computing = False
        self._step_began_at = None
        if isinstance(error, DeviceLostError):
            with self._changed:
                self._lost = error  # from now on nothing arrives
            self._on_lost(error)
        else:
            # What the step was to write is undefined.
            with suppress(Exception):
                self._engine.clear_blocks(sorted({b for i in self._items for b in i.blocks}))
        if isinstance(error, DeviceError):
            self._take_in(wait=False)
            self._pending += self._roster.fail_all(error, monotonic())
            self._deliver()
        else:
            self._pending.clear()
            _log.error("the scheduler of a decoder failed", exc_info=error)
            with self._changed:
                self._arrived.clear()
                self._outbox.end_all(DeviceError("a step could not be computed"), monotonic())
        self._roster = self._new_roster()


def _stopped() -> NotReadyError:
    return NotReadyError("the server stopped before this request's turn; try another")
