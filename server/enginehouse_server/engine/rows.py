"""Which row of a cache each slot is in, so that those of one step lie beside each other.

A runtime computes on rows in place where they are one range of memory. Sequences come and go, and
so do the slots of a step. Whoever is missing in the first rows is swapped into them, once; it
stays there. Knows no runtime.
"""

from collections.abc import Callable, Sequence

__all__ = ["SlotRows"]


class SlotRows:
    """A row for every slot, at first that of its own number."""

    def __init__(self, num_slots: int, swap: Callable[[int, int], None]) -> None:
        """Takes how many there are, and what swaps the contents of two rows."""
        self._swap = swap
        self._row_of = list(range(num_slots))
        self._slot_in = list(range(num_slots))

    def row_of(self, slot: int) -> int:
        """Where a slot is now."""
        return self._row_of[slot]

    def gather(self, slots: Sequence[int]) -> list[int]:
        """Moves slots into the first rows, in any order, and gives the row of each.

        Those that are there already stay, so that one more or one less costs one swap at most.
        """
        count = len(slots)
        wanted = set(slots)
        strangers = [row for row in range(count) if self._slot_in[row] not in wanted]
        for slot in slots:
            if self._row_of[slot] >= count:
                self._exchange(self._row_of[slot], strangers.pop())
        return [self._row_of[slot] for slot in slots]

    def _exchange(self, one: int, other: int) -> None:
        self._swap(one, other)
        slots = self._slot_in
        slots[one], slots[other] = slots[other], slots[one]
        for row in (one, other):
            self._row_of[slots[row]] = row
