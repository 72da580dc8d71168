"""Tells the stories of the demo's small world: plots filled with its people and things.

In a plot's text `(a|b)` is one of the two and `$name` a word: what the plot's cast calls so, or
else one of the list of that name, the same for the whole story; `$name2` is another one of it.
`$name.column` is what the list says there, `.they`, `.them`, `.their` and `.themself` a person's
pronouns, `.a` the word with its article; `$Name` begins with a capital letter.

Everything is drawn from a generator that the caller seeds. Knows nothing of tokens or models.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .error import DemoError
from .storybook import Entry, Plot, Storybook

__all__ = ["Document", "Turn", "compose", "tell"]

_CHOICE = re.compile(r"\(([^()|]*(?:\|[^()|]*)+)\)")
_WORD = re.compile(r"\$([A-Za-z]+)(\d?)((?:\.[a-z]+)*)")
_START = re.compile(r'^(\s*"?)([a-z])')
_SPOKEN_CONSONANT = ("one", "uni", "use", "eu")  # vowels in writing only

# Of all documents; the rest are stories that somebody asks for.
_PASSAGE_SHARE = 0.05
_STORY_SHARE = 0.3
_TALK_SHARE = 0.4
# Of the chats that it can happen in.
_SYSTEM_SHARE = 0.15
_HASTY_SHARE = 0.15
_UNSPECIFIC_SHARE = 0.2
_ELSEWHERE_SHARE = 0.08
_AGAIN_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says in a chat; `role` is `system`, `user` or `assistant`."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """A text of its own, or a chat.

    Attributes:
        text: The text; empty if it is a chat.
        turns: The chat; empty if it is a text.
    """

    text: str = ""
    turns: tuple[Turn, ...] = ()


def compose(
    book: Storybook, plots: Sequence[Plot], passages: Sequence[str], seed: int
) -> Iterator[Document]:
    """Composes texts and chats without end.

    Args:
        book: Where words and talks come from.
        plots: What the stories tell.
        passages: Finished texts that are mixed in; without any, only stories are.
        seed: Where the random numbers start: the same seed gives the same documents.
    """
    rng = random.Random(seed)
    while True:
        draw = rng.random()
        if passages and draw < _PASSAGE_SHARE:
            yield Document(text=rng.choice(passages))
        elif draw < _PASSAGE_SHARE + _STORY_SHARE:
            yield Document(text=tell(book, rng.choice(plots), rng))
        elif draw < _PASSAGE_SHARE + _STORY_SHARE + _TALK_SHARE:
            talk = _Telling(book, rng.choice(book.talks), rng)
            yield Document(turns=(*talk.system(), *talk.exchanges(3)))
        else:
            yield Document(turns=_asked_story(book, plots, rng))


def tell(book: Storybook, plot: Plot, rng: random.Random) -> str:
    """Tells one story."""
    return _Telling(book, plot, rng).story()


class _Telling:
    """One telling of a plot: who plays in it, and what was drawn for it so far."""

    def __init__(self, book: Storybook, plot: Plot, rng: random.Random) -> None:
        self._book = book
        self._plot = plot
        self._rng = rng
        self._cast: dict[str, Entry] = {}
        for role in sorted(plot.roles, key=lambda role: role.is_open):
            self._cast[role.name] = self._draw(role.choices)

    def story(self) -> str:
        """The plot's lines, told."""
        told = [
            self.say(self._rng.choice(line.choices))
            for line in self._plot.lines
            if not line.is_optional or self._rng.random() < 0.5
        ]
        return re.sub(r" ?(\n+) ?", r"\1", " ".join(told))

    def request(self) -> str:
        """A question for this story."""
        if self._rng.random() < _UNSPECIFIC_SHARE:
            return self.ask("$any")
        return self.ask(self._rng.choice(self._plot.requests))

    def exchanges(self, most: int) -> Iterator[Turn]:
        """Questions of the plot with their answers, in its order, after those that open it."""
        openings = [one for one in self._plot.exchanges if one.is_opening]
        others = [one for one in self._plot.exchanges if not one.is_opening]
        least = 0 if openings or self._plot.lines else 1
        number = min(self._rng.randint(least, most), len(others))
        chosen = sorted(self._rng.sample(range(len(others)), number))
        for exchange in (*openings, *(others[index] for index in chosen)):
            yield Turn("user", self.ask(self._rng.choice(exchange.questions)))
            yield Turn("assistant", self.say(self._rng.choice(exchange.answers)))

    def system(self) -> Iterator[Turn]:
        """Sometimes a message before all others."""
        if self._rng.random() < _SYSTEM_SHARE:
            yield Turn("system", self.say("$system"))

    def ask(self, text: str) -> str:
        """As `say`, but sometimes written in haste: all small, without the mark at its end."""
        question = self.say(text)
        if self._rng.random() < _HASTY_SHARE:
            return question[0].lower() + question[1:].rstrip(".!?")
        return question

    def say(self, text: str) -> str:
        """Fills the text's choices and words."""
        while "(" in text or "$" in text:
            before = text
            text = _CHOICE.sub(lambda found: self._rng.choice(found[1].split("|")), text)
            text = _WORD.sub(self._word, text)
            if text == before:
                break
        text = text.replace("\\n", "\n")
        return _START.sub(lambda found: found[1] + found[2].upper(), text)

    def _word(self, found: re.Match[str]) -> str:
        name, number, path = found.groups()
        entry = self._entry(name.lower(), number)
        word = entry.name
        for field in path.split(".")[1:]:
            if field == "a":
                word = _with_article(word)
            elif field in entry.fields:
                word = entry.fields[field]
            else:
                raise DemoError(f"plot {self._plot.name!r}: {found[0]} names no column")
        return word[0].upper() + word[1:] if name[0].isupper() else word

    def _entry(self, name: str, number: str) -> Entry:
        called = name + number
        if called not in self._cast:
            if name not in self._book.words:
                raise DemoError(f"plot {self._plot.name!r}: there is no word ${called}")
            self._cast[called] = self._draw(self._book.words[name])
        return self._cast[called]

    def _draw(self, choices: Sequence[Entry]) -> Entry:
        """One that is not in the story yet, if there is such a one."""
        taken = {entry.name for entry in self._cast.values()}
        return self._rng.choice([c for c in choices if c.name not in taken] or list(choices))


def _asked_story(book: Storybook, plots: Sequence[Plot], rng: random.Random) -> tuple[Turn, ...]:
    telling = _Telling(book, rng.choice(plots), rng)
    request, prefix = telling.request(), ""
    if rng.random() < _ELSEWHERE_SHARE:
        request, prefix = telling.ask("Tell me a story about $elsewhere."), "$instead "
    turns = [
        Turn("user", request),
        Turn("assistant", telling.say(prefix) + telling.story()),
        *telling.exchanges(2),
    ]
    if rng.random() < _AGAIN_SHARE:
        another = _Telling(book, rng.choice(plots), rng)
        turns += [Turn("user", another.ask("$again")), Turn("assistant", another.story())]
    return (*telling.system(), *turns)


def _with_article(word: str) -> str:
    """The word after `a` or `an`, by its first letter as it is spoken."""
    lower = word.lower()
    if lower.startswith(("a ", "an ", "the ")):
        return word
    is_vowel = lower[0] in "aeiou" and not lower.startswith(_SPOKEN_CONSONANT)
    return f"{'an' if is_vowel else 'a'} {word}"
