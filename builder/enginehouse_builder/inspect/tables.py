"""Tables and lists of facts, and how numbers are said in them."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

__all__ = ["facts_to", "share", "size", "some", "table_of"]

_NUMBERS = ("version", "logit", "size", "worst error", "agree")


def table_of(*columns: str) -> Table:
    """An empty table; columns of numbers are flush right."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        is_number = column in _NUMBERS or column.startswith(("batch ", "after "))
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    return table


def facts_to(console: Console, facts: Mapping[str, str]) -> None:
    """Prints a line a fact."""
    for name, value in facts.items():
        console.print(f"  {name:<10} {value}", markup=False, soft_wrap=True)


def some(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, spread, the ends among them."""
    if len(values) <= most:
        return list(values)
    step = (len(values) - 1) / (most - 1)
    return [values[round(i * step)] for i in range(most)]


def share(number: float | None) -> str:
    """A share of one in per cent, or a dash."""
    return "-" if number is None else f"{number:.1%}"


def size(num_bytes: int) -> str:
    """Megabytes."""
    return f"{num_bytes / 1e6:.1f} MB"
