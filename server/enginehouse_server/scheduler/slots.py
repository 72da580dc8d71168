"""Who has which slot of an engine whose cache is one block a sequence, as long as the limit.

Slots are not shared: a sequence that begins like another goes on in the slot that one has left, or
has what they have in common copied from the one it still runs in. What a slot holds is noted in
pages (pages.py). Has the methods of a block pool.
"""

from collections import OrderedDict
from collections.abc import Sequence

from .blocks import Taken

__all__ = ["SlotPool"]

_PAGE_SIZE = 32  # tokens that are compared at once


class SlotPool:
    """Slots, and the pages of tokens that they hold."""

    def __init__(self, num_slots: int, max_tokens: int) -> None:
        self.num_blocks, self.page_size = num_slots, min(_PAGE_SIZE, max_tokens)
        # Free slots, the one to overwrite next first.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_slots))
        self._names: list[list[bytes]] = [[] for _ in range(num_slots)]
        self._slots_of: dict[bytes, set[int]] = {}

    @property
    def num_free(self) -> int:
        """Slots that no sequence has."""
        return len(self._free)

    def num_known(self, names: Sequence[bytes]) -> int:
        """How many of the first pages some slot has."""
        for num_known, name in enumerate(names):
            if name not in self._slots_of:
                return num_known
        return len(names)

    def take(self, names: Sequence[bytes], num_tokens: int, num_spare: int) -> Taken | None:
        """Takes a slot, as `BlockPool.take`; a slot holds any number of tokens."""
        if self.num_free <= num_spare:
            return None
        num_known = self.num_known(names)
        holders = self._slots_of[names[num_known - 1]] if num_known else set()
        slot = next((s for s in holders if s in self._free), None)
        if slot is not None:
            del self._free[slot]
            self._forget(slot, num_known)
            return Taken([slot], num_known * self.page_size)
        slot, _ = self._free.popitem(last=False)
        self._forget(slot, 0)
        return Taken([slot], num_known * self.page_size, next(iter(holders), None))

    def num_needed(self, num_tokens: int) -> int:
        """One slot, whatever it holds."""
        return 1

    def grow(self, blocks: list[int]) -> bool:
        """Slots do not grow: never needed."""
        return False

    def publish(self, blocks: Sequence[int], page: int, name: bytes) -> None:
        """Notes that a slot holds a further page."""
        [slot] = blocks
        if page == len(self._names[slot]):
            self._names[slot].append(name)
            self._slots_of.setdefault(name, set()).add(slot)

    def release(self, blocks: Sequence[int]) -> None:
        """Takes back the slot of a sequence."""
        for slot in blocks:
            self._free[slot] = None
            if not self._names[slot]:
                self._free.move_to_end(slot, last=False)

    def forget(self, blocks: Sequence[int]) -> list[int]:
        """Makes what the slot of a sequence holds findable no more, and gives the slot."""
        for slot in blocks:
            self._forget(slot, 0)
        return list(blocks)

    def check_integrity(self, in_use: Sequence[Sequence[int]]) -> None:
        """Compares what is noted with the slots of all sequences, as `BlockPool` does."""
        taken = [slot for blocks in in_use for slot in blocks]
        assert len(taken) == len(set(taken)), "a slot is had twice"
        assert set(taken) | set(self._free) == set(range(self.num_blocks)), "a slot is lost"
        assert not set(taken) & set(self._free), "a slot is had and free"
        held = {(n, s) for s, names in enumerate(self._names) for n in names}
        assert held == {(n, s) for n, slots in self._slots_of.items() for s in slots}

    def _forget(self, slot: int, num_kept: int) -> None:
        """Drops what is noted of a slot beyond its first pages."""
        for name in self._names[slot][num_kept:]:
            self._slots_of[name].discard(slot)
            if not self._slots_of[name]:
                del self._slots_of[name]
        del self._names[slot][num_kept:]
