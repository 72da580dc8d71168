"""What a served model tells about itself, whoever listens."""

from collections.abc import Callable
from typing import Protocol

__all__ = ["GenerateTelemetry", "ModelTelemetry", "RequestTelemetry"]


class RequestTelemetry(Protocol):
    """Takes the figures that every model version has; any thread may call."""

    def request_ended(self, rpc: str, code: str, seconds: float, /) -> None:
        """A request was answered, with a gRPC status code's name."""
        ...


class ModelTelemetry(RequestTelemetry, Protocol):
    """Takes the figures of one version of a classifier; any thread may call."""

    def input_ended(self, tokenize_s: float, queue_s: float, compute_s: float) -> None:
        """An input got its logits; where its time went."""
        ...

    def batch_ended(self, num_rows: int, num_tokens: int, computed_tokens: int) -> None:
        """A batch was computed: its inputs, their tokens, and tokens with padding."""
        ...

    def watch_queue(self, inputs: Callable[[], int], tokens: Callable[[], int]) -> None:
        """Names what to ask for the queue's length whenever someone looks."""
        ...


class GenerateTelemetry(RequestTelemetry, Protocol):
    """Takes the figures of one version of a decoder; any thread may call."""

    def sequence_ended(
        self, reason: str, queue_s: float, ttft_s: float, num_generated: int
    ) -> None:
        """A sequence ended; from its arrival to its first step and to its first token."""
        ...

    def sequences_lost(self, reason: str, number: int) -> None:
        """Sequences failed, expired, or were left by their caller."""
        ...

    def token_followed(self, gap_s: float) -> None:
        """A token came so long after the one before it."""
        ...
