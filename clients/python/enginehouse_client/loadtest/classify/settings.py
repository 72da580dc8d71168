"""What a load of Classify sends, and what it counts as good."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from enginehouse_client.loadtest.settings import RunSettings

__all__ = ["LoadSettings"]


@dataclass(frozen=True, slots=True)
class LoadSettings(RunSettings):
    """Texts to classify; see `RunSettings` for the rest.

    Attributes:
        texts: What is classified, over and over, in an order that `seed` shuffles.
        texts_per_request: Texts in each request.
        is_streamed: All requests over one ClassifyStream, instead of a call each.
        slo_ms: Latency up to which an answer counts toward the goodput; None counts none.
    """

    texts: tuple[str, ...] = field(repr=False)
    texts_per_request: int = field(default=1, kw_only=True)
    is_streamed: bool = field(default=False, kw_only=True)
    slo_ms: float | None = field(default=None, kw_only=True)

    def faults(self) -> Iterator[str]:
        """What makes no sense."""
        if not self.texts:
            yield "texts must not be empty"
        if self.texts_per_request < 1:
            yield f"texts_per_request is {self.texts_per_request}, and must be at least 1"
        yield from RunSettings.faults(self)
