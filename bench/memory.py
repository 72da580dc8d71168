"""How much memory a process holds while something is measured, and how busy it keeps a core."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Self

import psutil

__all__ = ["Growth", "MemoryWatch", "growth_of"]


@dataclass(frozen=True, slots=True)
class Growth:
    """Mean resident bytes of the second and of the last third of a time."""

    second_bytes: float
    last_bytes: float

    @property
    def share(self) -> float:
        """Of the second third's, by how much the last third's is more."""
        return self.last_bytes / self.second_bytes - 1

    def __str__(self) -> str:
        return f"{self.last_bytes / 2**20:.0f} MiB, {self.share:+.2%} in the last third"


def growth_of(samples: Sequence[int]) -> Growth:
    """Of samples at equal intervals; the first third is where a server fills its caches."""
    third = len(samples) // 3
    return Growth(mean(samples[third : 2 * third]), mean(samples[2 * third :]))


class MemoryWatch:
    """Samples the resident bytes of a process, within its context.

    Attributes:
        samples: Resident bytes, in order.
        cpu_share: Share of one core that the process used, known afterwards.
    """

    def __init__(self, process_id: int, interval_s: float) -> None:
        self._process, self._interval_s = psutil.Process(process_id), interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: list[int] = []
        self.cpu_share = 0.0

    def __enter__(self) -> Self:
        self._cpu_s, self._began = self._cpu_time_s(), time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self.cpu_share = (self._cpu_time_s() - self._cpu_s) / (time.monotonic() - self._began)

    def _cpu_time_s(self) -> float:
        return float(sum(self._process.cpu_times()[:2]))

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self.samples.append(self._process.memory_info().rss)
