"""Finds the strings that end a text while the text still comes, wherever its pieces are cut."""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Found", "StopStrings"]


class Found(NamedTuple):
    """Text that may be shown, and the string that ended it, if one did."""

    text: str
    stop: str | None


class StopStrings:
    """Looks for the first of several strings in one text.

    The first is the one that is complete first, and of those that are complete at the same
    character the longest. Text that may yet become a part of one is held back.
    """

    def __init__(self, strings: Sequence[str], *, include: bool) -> None:
        """Takes the strings, none empty, and whether the one found is part of the text."""
        self._strings, self._include = tuple(strings), include
        self._held = ""

    def push(self, piece: str, *, may_stop: bool = True) -> Found:
        """What may be shown with one more piece of the text; nothing more may come after a stop.

        Args:
            piece: What follows.
            may_stop: Whether a string may be complete within this piece.
        """
        if not self._strings:
            return Found(piece, None)
        text = self._held + piece
        if may_stop and (hit := self._first_in(text, len(self._held))):
            stop, start = hit
            self._held = ""
            return Found(text[: start + len(stop) if self._include else start], stop)
        keep = self._num_undecided(text)
        self._held = text[len(text) - keep :]
        return Found(text[: len(text) - keep], None)

    def finish(self) -> str:
        """What was held back: the text ends without a stop."""
        held, self._held = self._held, ""
        return held

    def _first_in(self, text: str, num_old: int) -> tuple[str, int] | None:
        """The string that is complete first beyond the old characters, and where it starts."""
        found = []
        for string in self._strings:
            start = text.find(string, max(0, num_old + 1 - len(string)))
            if start >= 0:
                found.append((start + len(string), start, string))
        if not found:
            return None
        _, start, string = min(found)
        return string, start

    def _num_undecided(self, text: str) -> int:
        """Length of the longest end of the text that a string begins with."""
        longest = min(len(text), max(map(len, self._strings)) - 1)
        for length in range(longest, 0, -1):
            end = text[len(text) - length :]
            if any(s.startswith(end) and len(s) > length for s in self._strings):
                return length
        return 0
