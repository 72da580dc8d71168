"""When a run measures, which requests were due then, and what the generator used meanwhile."""

import time
from datetime import UTC, datetime

__all__ = ["Window"]


class Window:
    """The span of a run in which requests are counted; times are those of `time.perf_counter`.

    Attributes:
        started_at: The time of day at the run's start.
        start: Start of the run.
        measured_from: Requests due from then on count.
        end: No request is due any more; moves to the run's end if that is earlier.
        is_interrupted: The run was told to stop.
        num_due: Requests whose time came in the measurement.
        num_unsent: Those of them that were not sent, because too many were unanswered.
        num_unfinished: Those of them that nobody waited for any more.
    """

    def __init__(self, warmup_s: float, duration_s: float) -> None:
        self.started_at = datetime.now(UTC)
        self.start = time.perf_counter()
        self.measured_from = self.start + warmup_s
        self.end = self.measured_from + duration_s
        self.is_interrupted = False
        self.num_due = self.num_unsent = self.num_unfinished = 0
        self._cpu_from = self._cpu_to = time.process_time()
        self._over = self.end

    def measures(self, due: float) -> bool:
        """Whether a request that is due then counts."""
        return due >= self.measured_from

    def begin(self) -> None:
        """The warm-up is over."""
        self._cpu_from = time.process_time()

    def finish(self, is_interrupted: bool, num_unfinished: int) -> None:
        """Everything was answered, or the run was told to stop."""
        self._over, self._cpu_to = time.perf_counter(), time.process_time()
        self.end = max(self.measured_from, min(self.end, self._over))
        self.is_interrupted, self.num_unfinished = is_interrupted, num_unfinished

    @property
    def duration_s(self) -> float:
        """Time in which requests were counted."""
        return self.end - self.measured_from

    @property
    def cpu_s(self) -> float:
        """Processor time of this process since the measurement began, gRPC's threads included."""
        return self._cpu_to - self._cpu_from

    @property
    def cpu_share(self) -> float:
        """Share of one core that this process used since the measurement began."""
        return self.cpu_s / max(self._over - self.measured_from, 1e-9)
