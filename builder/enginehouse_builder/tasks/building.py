"""A build under way: what its stages use, how they are shown, and how long they took."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from enginehouse_builder.display import Display, StageDisplay
from enginehouse_builder.manifest import StageTime
from enginehouse_builder.stages import Result, Workplace

__all__ = ["Building", "by_target"]


class Building:
    """A build under way.

    Attributes:
        place: What its stages use.
        times: How long those took that are done.
    """

    def __init__(self, place: Workplace, display: Display, times: list[StageTime]) -> None:
        self.place = place
        self.times = times
        self._display = display

    @contextmanager
    def stage(self, name: str) -> Iterator[StageDisplay]:
        """Shows a stage while the context lasts."""
        with self._display.stage(name) as stage:
            yield stage

    def took(self, stage: str, *results: Result[object]) -> None:
        """Notes how long a stage took; one that runs again adds to its time."""
        seconds = round(sum(r.seconds for r in results), 3)
        for i, time in enumerate(self.times):
            if time.stage == stage:
                self.times[i] = StageTime(stage, round(time.seconds + seconds, 3))
                return
        self.times.append(StageTime(stage, seconds))

    def note(self, text: str) -> None:
        """Says something between stages."""
        self._display.note(text)


def by_target(said: Iterable[tuple[str, str]]) -> str:
    """What is said of each target, by name where there are several."""
    texts = list(said)
    if len(texts) == 1:
        return texts[0][1]
    return "; ".join(f"{name}: {text}" for name, text in texts)
