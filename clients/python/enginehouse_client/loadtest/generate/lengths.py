"""How long prompts and answers are: lengths in tokens, fixed or drawn at random."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fixed", "Lengths", "Lognormal", "Uniform", "parse_lengths"]


class Lengths(Protocol):
    """A distribution of lengths, all at least 1; its text is what `parse_lengths` takes."""

    @property
    def max_tokens(self) -> int | None:
        """The greatest length; None if there is no bound."""
        ...

    def draw(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Lengths, `[count]`."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same length."""

    tokens: int

    @property
    def max_tokens(self) -> int:
        """The length."""
        return self.tokens

    def draw(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        """The length, `[count]` times."""
        return np.full(count, self.tokens, dtype=np.int64)

    def __str__(self) -> str:
        return str(self.tokens)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each length from `low` to `high` is as likely."""

    low: int
    high: int

    @property
    def max_tokens(self) -> int:
        """The greatest length."""
        return self.high

    def draw(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Lengths, `[count]`."""
        return random.integers(self.low, self.high + 1, count)

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Many short and few long ones, as users write: the logarithm is normal.

    Attributes:
        median: Half of the lengths are shorter.
        sigma: Deviation of the natural logarithm; at 1 a sixth is 2.7 times the median or more.
        limit: Longer ones are drawn again; None is no limit.
    """

    median: float
    sigma: float
    limit: int | None = None

    @property
    def max_tokens(self) -> int | None:
        """The greatest length; None if there is no bound."""
        return self.limit

    def draw(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Lengths, `[count]`."""
        drawn = self._draw(random, count)
        while self.limit is not None and (is_long := drawn > self.limit).any():
            drawn[is_long] = self._draw(random, int(is_long.sum()))
        return drawn

    def _draw(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        lengths = random.lognormal(math.log(self.median), self.sigma, count)
        return np.clip(np.rint(lengths), 1, 2**31 - 1).astype(np.int64)

    def __str__(self) -> str:
        limit = "" if self.limit is None else f",{self.limit}"
        return f"lognormal:{self.median:g},{self.sigma:g}{limit}"


def parse_lengths(text: str) -> Lengths:
    """Lengths from `N`, `A..B` or `lognormal:MEDIAN,SIGMA[,MAX]`.

    Raises:
        ValueError: If the text is none of these, or a length is below 1.
    """
    try:
        lengths = _parse(text.strip())
    except ValueError:
        lengths = None
    if lengths is None or not _is_sound(lengths):
        raise ValueError(
            f"{text!r} is no length: N, A..B or lognormal:MEDIAN,SIGMA[,MAX] is expected, with"
            " 1 <= N, 1 <= A <= B, and 1 <= MEDIAN <= MAX, SIGMA from 0 to 10"
        )
    return lengths


def _parse(text: str) -> Lengths | None:
    if text.startswith("lognormal:"):
        median, sigma, *limit = text.removeprefix("lognormal:").split(",")
        if len(limit) > 1:
            return None
        return Lognormal(float(median), float(sigma), int(limit[0]) if limit else None)
    if ".." in text:
        low, high = text.split("..")
        return Uniform(int(low), int(high))
    return Fixed(int(text))


def _is_sound(lengths: Lengths) -> bool:
    match lengths:
        case Fixed(tokens):
            return tokens >= 1
        case Uniform(low, high):
            return 1 <= low <= high
        case Lognormal(median, sigma, limit):
            return 1 <= median <= (limit or 2**31) and 0 <= sigma <= 10
    return False
