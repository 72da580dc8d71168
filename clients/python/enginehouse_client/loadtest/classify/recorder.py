"""Takes down each Classify request as it ends."""

from enginehouse.v1.inference_service_pb2 import ClassifyResponse
from enginehouse_client.errors import EnginehouseError
from enginehouse_client.loadtest.samples import ANSWERED, Rows, Samples

__all__ = ["Recorder"]

_COLUMNS = (
    "scheduled",
    "sent",
    "done",
    "outcome",
    "num_texts",
    "num_tokens",
    "tokenize_ms",
    "queue_ms",
    "compute_ms",
    "total_ms",
    "batch_size",
    "padding_fraction",
)
_NO_ANSWER = (0.0,) * 8


class Recorder:
    """Rows of requests that were answered or failed."""

    def __init__(self) -> None:
        self._rows = Rows(_COLUMNS)

    def answered(
        self, scheduled: float, sent: float, done: float, response: ClassifyResponse
    ) -> None:
        """A request succeeded; its timing is that of its slowest text."""
        results = response.results
        if len(results) == 1:
            slowest, num_tokens = results[0].timing, results[0].num_tokens
        else:
            slowest = max((result.timing for result in results), key=lambda each: each.total_ms)
            num_tokens = sum(result.num_tokens for result in results)
        self._rows.add(
            (
                scheduled,
                sent,
                done,
                ANSWERED,
                len(results),
                num_tokens,
                slowest.tokenize_ms,
                slowest.queue_ms,
                slowest.compute_ms,
                slowest.total_ms,
                slowest.batch_size,
                slowest.padding_fraction,
            )
        )

    def failed(self, scheduled: float, sent: float, done: float, error: EnginehouseError) -> None:
        """A request failed."""
        self._rows.add((scheduled, sent, done, self._rows.outcome_of(error), *_NO_ANSWER))

    def samples(self) -> Samples:
        """All that was taken down."""
        return self._rows.samples()
