"""Plain aligned lines, for a terminal or a file."""

from collections.abc import Sequence

__all__ = ["aligned"]


def aligned(rows: Sequence[tuple[str, str]], indent: str = "") -> list[str]:
    """Rows of a name and a value, the values in one column."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{indent}{name:<{width}}  {value}" for name, value in rows]
