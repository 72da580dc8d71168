"""Who has which block of an engine's cache, and which blocks hold what could be used again.

A block is referenced by the sequences that have it, or free. Blocks that are full have names
(pages.py) and may be found by them, also after the last sequence has left: what is free is kept
until it is needed, the least recently used first. Knows no engine and no sequences.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["BlockPool", "Taken"]


class Taken(NamedTuple):
    """What a sequence gets to begin with.

    Attributes:
        blocks: In order, enough for its tokens; now referenced.
        num_cached: Tokens that they have already.
        copy_from: A block to copy into the first of `blocks` before that is so; None for nothing.
    """

    blocks: list[int]
    num_cached: int
    copy_from: int | None = None


class BlockPool:
    """Blocks that sequences may share, each by the tokens that it and those before it hold."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.page_size = num_blocks, block_size
        self._references = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # free, with a name, oldest first
        self._block_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that no sequence has."""
        return len(self._empty) + len(self._kept)

    def num_known(self, names: Sequence[bytes]) -> int:
        """How many of the first pages the cache has."""
        for num_known, name in enumerate(names):
            if name not in self._block_of:
                return num_known
        return len(names)

    def take(self, names: Sequence[bytes], num_tokens: int, num_spare: int) -> Taken | None:
        """Takes the blocks of a sequence, those that hold its first pages already among them.

        Args:
            names: Of pages that may be taken from the cache.
            num_tokens: That the blocks must hold.
            num_spare: Blocks that must be free afterwards.

        Returns:
            None if there are too few.
        """
        shared = [self._block_of[name] for name in names[: self.num_known(names)]]
        num_new = self.num_needed(num_tokens) - len(shared)
        num_revived = sum(not self._references[block] for block in shared)
        if self.num_free - num_revived - num_new < num_spare:
            return None
        for block in shared:
            if not self._references[block]:
                del self._kept[block]
            self._references[block] += 1
        blocks = shared + [self._take_free() for _ in range(num_new)]
        return Taken(blocks, len(shared) * self.page_size)

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-num_tokens // self.page_size)

    def grow(self, blocks: list[int]) -> bool:
        """Adds a block to those of a sequence; False if none is free."""
        if not self.num_free:
            return False
        blocks.append(self._take_free())
        return True

    def publish(self, blocks: Sequence[int], page: int, name: bytes) -> None:
        """Makes the full page of a sequence findable, once it was computed."""
        block = blocks[page]
        if name not in self._block_of and block not in self._name_of:
            self._block_of[name] = block
            self._name_of[block] = name

    def release(self, blocks: Sequence[int]) -> None:
        """Takes back the blocks of a sequence; each stays as long as another has it."""
        # Last pages first: a page is of no use without those before it.
        for block in reversed(blocks):
            self._references[block] -= 1
            if not self._references[block]:
                if block in self._name_of:
                    self._kept[block] = None
                else:
                    self._empty.append(block)

    def forget(self, blocks: Sequence[int]) -> list[int]:
        """Makes those blocks of a sequence that no other has findable no more, and gives them."""
        own = [block for block in blocks if self._references[block] == 1]
        for block in own:
            if block in self._name_of:
                del self._block_of[self._name_of.pop(block)]
        return own

    def check_integrity(self, in_use: Sequence[Sequence[int]]) -> None:
        """Compares what is noted with the blocks of all sequences.

        Raises:
            AssertionError: A block is lost, or is had by more or fewer than is noted.
        """
        counted = [0] * self.num_blocks
        for blocks in in_use:
            for block in blocks:
                counted[block] += 1
        assert counted == self._references, "references differ from the sequences' blocks"
        free = [*self._empty, *self._kept]
        assert len(free) == len(set(free)), "a block is free twice"
        assert {b for b, n in enumerate(counted) if not n} == set(free), "a block is lost"
        assert all(n < 2 or b in self._name_of for b, n in enumerate(counted)), "shared, not full"
        assert {b: n for n, b in self._block_of.items()} == self._name_of, "names differ"
        assert all(b in self._name_of for b in self._kept), "kept without a name"

    def _take_free(self) -> int:
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            del self._block_of[self._name_of.pop(block)]
        self._references[block] = 1
        return block
