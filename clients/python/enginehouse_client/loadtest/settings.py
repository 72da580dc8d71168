"""What a load test sends, for how long, and what it counts as good."""

from dataclasses import dataclass, field

from enginehouse_client._base import DEFAULT_MAX_MESSAGE_BYTES

__all__ = ["LoadSettings"]


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What both kinds of load have in common.

    Attributes:
        target: Where the server is.
        model: Name of the model.
        texts: What is classified, over and over, in an order that `seed` shuffles.
        version: Version of the model; None is the newest served.
        texts_per_request: Texts in each request.
        warmup_s: Load before anything is counted.
        duration_s: Longest time of the measurement; answers still due are then waited for.
        num_requests: Ends the measurement after so many requests; None is by time alone.
        timeout_s: Deadline of each request, and so the longest wait after the measurement.
        is_streamed: All requests over one ClassifyStream, instead of a call each.
        seed: Of the order of texts and of the arrivals.
        slo_ms: Latency up to which an answer counts toward the goodput; None counts none.
        max_message_bytes: Longest message sent or taken.
    """

    target: str
    model: str
    texts: tuple[str, ...] = field(repr=False)
    version: int | None = None
    texts_per_request: int = 1
    warmup_s: float = 1.0
    duration_s: float = 10.0
    num_requests: int | None = None
    timeout_s: float = 10.0
    is_streamed: bool = False
    seed: int = 0
    slo_ms: float | None = None
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        """Refuses what makes no sense, all faults at once."""
        faults = [
            text
            for is_fault, text in (
                (not self.texts, "texts must not be empty"),
                (self.texts_per_request < 1, "texts_per_request must be at least 1"),
                (self.warmup_s < 0, "warmup_s must not be negative"),
                (self.duration_s <= 0, "duration_s must be positive"),
                (self.num_requests is not None and self.num_requests < 1, "num_requests < 1"),
                (self.timeout_s <= 0, "timeout_s must be positive"),
            )
            if is_fault
        ]
        if faults:
            raise ValueError("; ".join(faults))
