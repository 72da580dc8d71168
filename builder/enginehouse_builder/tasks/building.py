"""A build under way: what its stages use, how they are shown, and how long they took."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from enginehouse_builder.display import Display, StageDisplay
from enginehouse_builder.manifest import StageTime
from enginehouse_builder.stages import Context, Result

__all__ = ["Building", "by_target"]


class Building:
    """A build under way.

    Attributes:
        context: What its stages use.
        times: How long those took that are done.
    """

    def __init__(self, context: Context, display: Display, times: list[StageTime]) -> None:
        self.context = context
        self.times = times
        self._display = display

    @contextmanager
    def stage(self, name: str) -> Iterator[StageDisplay]:
        """Shows a stage while the context lasts."""
        with self._display.stage(name) as stage:
            yield stage

    def took(self, stage: str, *results: Result[object]) -> None:
        """Notes how long a stage took."""
        self.times.append(StageTime(stage, round(sum(r.seconds for r in results), 3)))


def by_target(said: Iterable[tuple[str, str]]) -> str:
    """What is said of each target, by name where there are several."""
    texts = list(said)
    if len(texts) == 1:
        return texts[0][1]
    return "; ".join(f"{name}: {text}" for name, text in texts)
