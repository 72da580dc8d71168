"""Ratios that can be trusted on a machine that others use too: the median of interleaved pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure measured in turns with what it is compared to.

    Attributes:
        name: What was compared.
        unit: Of both figures.
        ours: Ours, by turn.
        theirs: The other's, by turn.
        at_least: The bar for the median ratio ours / theirs; None if there is none.
    """

    name: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    at_least: float | None = None

    @property
    def ratios(self) -> list[float]:
        """Ours / theirs, by turn."""
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """Their median."""
        return median(self.ratios)

    @property
    def verdict(self) -> str:
        """Whether the bar is met; a bar within the spread counts as met and is marked so."""
        if self.at_least is None:
            return ""
        if self.ratio >= self.at_least:
            return f"met (>= {self.at_least:g})"
        if max(self.ratios) >= self.at_least:
            return f"met within spread (>= {self.at_least:g})"
        return f"MISSED (>= {self.at_least:g})"

    def __str__(self) -> str:
        low, high = min(self.ratios), max(self.ratios)
        figures = f"{median(self.ours):8.1f} / {median(self.theirs):8.1f} {self.unit}"
        spread = f"{self.ratio:6.3f} ({low:.3f} to {high:.3f}, {len(self.ratios)} pairs)"
        return f"{self.name:44} {spread}  {figures}  {self.verdict}"


def compare(
    name: str,
    unit: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    num_pairs: int,
    at_least: float | None = None,
) -> Comparison:
    """Measures both in turns, A B A B, so that what disturbs the machine disturbs both."""
    turns = [(ours(), theirs()) for _ in range(num_pairs)]
    return Comparison(name, unit, [t[0] for t in turns], [t[1] for t in turns], at_least)
