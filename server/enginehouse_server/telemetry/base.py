"""What a served model tells about itself, whoever listens."""

from collections.abc import Callable
from typing import Protocol

__all__ = ["ModelTelemetry"]


class ModelTelemetry(Protocol):
    """Takes the figures of one model version; any thread may call."""

    def request_ended(self, rpc: str, code: str, seconds: float) -> None:
        """A request was answered, with a gRPC status code's name."""
        ...

    def input_ended(self, tokenize_s: float, queue_s: float, compute_s: float) -> None:
        """An input got its logits; where its time went."""
        ...

    def batch_ended(self, num_rows: int, num_tokens: int, computed_tokens: int) -> None:
        """A batch was computed: its inputs, their tokens, and tokens with padding."""
        ...

    def watch_queue(self, inputs: Callable[[], int], tokens: Callable[[], int]) -> None:
        """Names what to ask for the queue's length whenever someone looks."""
        ...
