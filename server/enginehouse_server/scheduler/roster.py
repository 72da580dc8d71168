"""The sequences that a decoder has not ended: what joins, what a step gives them, what ends them.

Each of the methods gives what is to be delivered; a sequence that ended is forgotten, so that none
ends twice. Knows no threads, no engine and no clock: times are passed in.
"""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import DecoderLimits, ReducedLogits
from enginehouse_server.errors import (
    DeadlineError,
    DeviceError,
    DeviceLostError,
    EnginehouseError,
)
from enginehouse_server.sampling import (
    Choice,
    StructureMatcher,
    choose,
    choose_reduced,
    score_tokens,
)

from .generate_policy import GeneratePolicy
from .generate_work import Emitted, FinishReason, GenerateWork
from .planner import Part, Planner, Step
from .sequence import Sequence

__all__ = ["Arrival", "Roster"]

_log = logging.getLogger(__name__)


class Arrival(NamedTuple):
    """A sequence that was admitted, and its structure at the beginning."""

    work: GenerateWork
    structure: StructureMatcher | None = None


class Roster:
    """Sequences by request and index, and the planner that has them.

    Attributes:
        planner: Of the next steps.
    """

    def __init__(
        self,
        limits: DecoderLimits,
        policy: GeneratePolicy,
        prompt_tokens_beside: Callable[[int, int], int],
    ) -> None:
        """Starts with nothing; the arguments are the planner's."""
        self.planner = Planner(limits, policy, prompt_tokens_beside)
        self._num_best = limits.num_best
        self._live: dict[int, dict[int, Sequence]] = {}
        self._num_arrivals = 0
        self._next_deadline = float("inf")  # of those that live, or earlier
        self._num_wasted = self._num_left = 0

    def add(self, arrival: Arrival) -> None:
        """Lets a sequence wait."""
        work, structure = arrival
        sequence = Sequence(
            work, self._num_arrivals, self.planner.page_size, structure, self._num_best
        )
        self._num_arrivals += 1
        self._live.setdefault(work.request_id, {})[work.index] = sequence
        self._next_deadline = min(self._next_deadline, work.deadline)
        self.planner.add(sequence)

    def cancel(
        self, request_id: int, index: int | None, reason: FinishReason, now: float
    ) -> list[Emitted]:
        """Ends a sequence, or with no index all of a request; nothing if they have ended."""
        found = self._live.get(request_id, {})
        gone = [s for i, s in found.items() if index is None or i == index]
        # What a stop string ends was of use.
        return [self._end(s, now, reason, is_wasted=reason == "cancelled") for s in gone]

    def expire(self, now: float) -> list[Emitted]:
        """Ends those whose deadline has passed."""
        if now < self._next_deadline:
            return []
        late = [s for s in self._all() if s.work.deadline <= now]
        error = DeadlineError("the deadline passed before the sequence ended")
        emitted = [self._end(s, now, None, error) for s in late]
        self._next_deadline = min((s.work.deadline for s in self._all()), default=float("inf"))
        return emitted

    def fail_all(self, error: EnginehouseError, now: float) -> list[Emitted]:
        """Ends everything with an error."""
        return [self._end(s, now, None, error) for s in list(self._all())]

    def give_up(self, error: EnginehouseError, now: float) -> list[Emitted]:
        """Ends those that have tokens as cancelled, the others with an error."""
        return [
            self._end(s, now, "cancelled")
            if s.sampling.num_generated
            else self._end(s, now, None, error)
            for s in list(self._all())
        ]

    def prepare(self, step: Step) -> None:
        """Does for the choices after a step what needs no logits, while these are computed."""
        for part in step.parts:
            if part.is_last:
                part.sequence.sampling.prepare()

    def finish(self, step: Step, logits: Logits | ReducedLogits, now: float) -> list[Emitted]:
        """Chooses the next tokens after a step. What fails for one sequence ends that one alone.

        Args:
            step: The planner's last.
            logits: As the engine gave them; overwritten.
            now: The time.
        """
        rows: list[int] = []
        choosing: list[Sequence] = []
        failed: list[Emitted] = []
        start = 0
        for part in step.parts:
            end = start + part.num_logits
            if not part.sequence.is_running:  # ended meanwhile
                self._num_wasted += part.num_tokens
            elif (error := _score(part, logits, start)) is not None:
                self._num_wasted += part.num_tokens
                failed.append(self._end(part.sequence, now, None, error))
            elif part.is_last:
                rows.append(end - 1)
                choosing.append(part.sequence)
            start = end
        self.planner.complete(step)
        states = [s.sampling for s in choosing]
        if isinstance(logits, ReducedLogits):
            choices = choose_reduced(logits, rows, states)
        else:
            choices = choose(logits[rows] if len(rows) < len(logits) else logits, states)
        return failed + [self._go_on(s, c, now) for s, c in zip(choosing, choices, strict=True)]

    def take_wasted(self) -> int:
        """Tokens that were computed in vain since the last call."""
        num_wasted, self._num_wasted = self._num_wasted, 0
        return num_wasted

    def take_left(self) -> int:
        """Sequences that gave up a place in the cache for good since the last call."""
        num_left, self._num_left = self._num_left, 0
        return num_left

    def _go_on(self, sequence: Sequence, choice: Choice, now: float) -> Emitted:
        if choice.error is not None:
            if isinstance(choice.error, DeviceError):
                self.planner.discard(sequence)
            return self._end(sequence, now, None, choice.error)
        token, work = choice.token, sequence.work
        try:
            sequence.sampling.append(token)
        except Exception as error:
            return self._end(sequence, now, None, _as_told(error))
        sequence.note_token(now)
        is_first = sequence.sampling.num_generated == 1
        scores = sequence.prompt_logprobs if is_first else None
        reason = sequence.finish_reason(token)
        ending = None if reason is None else sequence.ending(now, reason)
        if ending is not None:
            self._forget(sequence)
        return Emitted(work.request_id, work.index, token, choice.logprobs, scores, ending)

    def _end(
        self,
        sequence: Sequence,
        now: float,
        reason: FinishReason | None,
        error: EnginehouseError | None = None,
        is_wasted: bool = True,
    ) -> Emitted:
        if is_wasted:
            self._num_wasted += sequence.num_computed
        self._forget(sequence)
        work = sequence.work
        ending = sequence.ending(now, reason, error)
        return Emitted(work.request_id, work.index, None, ending=ending)

    def _forget(self, sequence: Sequence) -> None:
        self._num_left += sequence.is_running
        self.planner.remove(sequence)
        request_id, index = sequence.work.request_id, sequence.work.index
        found = self._live[request_id]
        del found[index]
        if not found:
            del self._live[request_id]

    def _all(self) -> Iterator[Sequence]:
        return (s for found in self._live.values() for s in found.values())


def _score(part: Part, logits: Logits | ReducedLogits, start: int) -> EnginehouseError | None:
    """Keeps how likely the tokens after each of a chunk of a prompt were, if asked for.

    Args:
        part: Whose chunk.
        logits: Of the whole step.
        start: Which row is the part's first.

    Returns:
        Why that failed; None if it did not.
    """
    sequence, work = part.sequence, part.sequence.work
    if not sequence.is_scoring:
        return None
    assert sequence.prompt_logprobs is not None
    assert work.num_prompt_logprobs is not None
    begin = sequence.num_cached + 1
    tokens = work.prompt[begin : begin + part.num_logits]
    end = start + len(tokens)
    try:
        rows = logits.fetch(start, end) if isinstance(logits, ReducedLogits) else logits[start:end]
        scores = score_tokens(rows, tokens, work.num_prompt_logprobs)
    except DeviceLostError:
        raise  # no sequence goes on
    except Exception as error:
        return _as_told(error)
    sequence.prompt_logprobs += scores
    return None


def _as_told(error: Exception) -> EnginehouseError:
    """What a caller is told of what nobody foresaw."""
    if isinstance(error, EnginehouseError):
        return error
    _log.error("a sequence failed", exc_info=error)
    return DeviceError(f"a sequence could not go on: {error}")
