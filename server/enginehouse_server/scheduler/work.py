"""What passes between a caller and the scheduler: plain data, fit to cross a process boundary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from enginehouse_server.engine.base import Logits
from enginehouse_server.errors import EnginehouseError

__all__ = ["Completion", "EncoderWork", "Policy"]


class EncoderWork(NamedTuple):
    """One input to compute. Times are seconds of one monotonic clock.

    Attributes:
        request_id: The caller's own, the same for all inputs of a request.
        position: Which input of the request this is.
        ids: Token ids, special tokens included, at least one.
        type_ids: Which of two texts each token is of; None when all are of the first.
        priority: Among waiting inputs the higher runs first.
        deadline: When an answer is of no use any more; infinity for never.
    """

    request_id: int
    position: int
    ids: Sequence[int]
    type_ids: Sequence[int] | None = None
    priority: int = 0
    deadline: float = float("inf")


class Completion(NamedTuple):
    """The end of one input: logits, or the error that ended it.

    Attributes:
        request_id: As in the work.
        position: As in the work.
        logits: `[labels]`, fp32; None if there is an error.
        error: None if there are logits.
        queued_at: When it was admitted.
        started_at: When its batch was given to the engine; `ended_at` if it never was.
        ended_at: When its batch was done or it was given up.
        batch_size: Inputs in its batch.
        padding_fraction: Share of the batch's tokens that were padding.
    """

    request_id: int
    position: int
    logits: Logits | None
    error: EnginehouseError | None
    queued_at: float
    started_at: float
    ended_at: float
    batch_size: int = 0
    padding_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds on what waits, and how batches are chosen.

    Attributes:
        max_queue: Most inputs that wait.
        max_queue_s: Longest predicted wait that a new request is let into, seconds.
        window: Share of the waiting inputs, first in order of service, that a batch is chosen
            from; 0 to 1. More wastes less padding; less keeps the slowest answers closer to the
            median.
        equal_lengths: Only inputs of one length share a batch.
    """

    max_queue: int
    max_queue_s: float
    window: float
    equal_lengths: bool = False
