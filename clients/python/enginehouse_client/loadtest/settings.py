"""What every load test is told: which model, for how long, from which seed."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from enginehouse_client._base import DEFAULT_MAX_MESSAGE_BYTES

__all__ = ["RunSettings"]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What all kinds of load have in common.

    Attributes:
        target: Where the server is.
        model: Name of the model.
        version: Version of the model; None is the newest served.
        warmup_s: Load before anything is counted.
        duration_s: Longest time of the measurement; answers still due are then waited for.
        num_requests: Ends the measurement after so many requests; None is by time alone.
        timeout_s: Deadline of each request, and so the longest wait after the measurement.
        seed: Of all that is drawn at random, the arrivals among it.
        max_message_bytes: Longest message sent or taken.
    """

    target: str
    model: str
    version: int | None = field(default=None, kw_only=True)
    warmup_s: float = field(default=1.0, kw_only=True)
    duration_s: float = field(default=10.0, kw_only=True)
    num_requests: int | None = field(default=None, kw_only=True)
    timeout_s: float = field(default=10.0, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    max_message_bytes: int = field(default=DEFAULT_MAX_MESSAGE_BYTES, kw_only=True)

    def __post_init__(self) -> None:
        """Refuses what makes no sense, all faults at once."""
        if found := "; ".join(self.faults()):
            raise ValueError(found)

    def faults(self) -> Iterator[str]:
        """What makes no sense."""
        if self.warmup_s < 0:
            yield f"warmup_s is {self.warmup_s:g}, and must not be negative"
        if self.duration_s <= 0:
            yield f"duration_s is {self.duration_s:g}, and must be positive"
        if self.num_requests is not None and self.num_requests < 1:
            yield f"num_requests is {self.num_requests}, and must be at least 1"
        if self.timeout_s <= 0:
            yield f"timeout_s is {self.timeout_s:g}, and must be positive"
