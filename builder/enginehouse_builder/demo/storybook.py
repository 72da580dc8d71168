"""Reads the demo's small world: its word lists, its plots and its finished passages.

The texts are files, so that they can be read, corrected and added to without touching code. What
becomes of them is the composer's affair.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .error import DemoError

__all__ = [
    "STORIES_FOLDER",
    "Entry",
    "Exchange",
    "Line",
    "Plot",
    "Role",
    "Storybook",
    "read_storybook",
]

STORIES_FOLDER = Path(__file__).parent / "stories"

_PERSONAL = {
    "she": {"them": "her", "their": "her", "themself": "herself"},
    "he": {"them": "him", "their": "his", "themself": "himself"},
}
_ROLE = re.compile(r"(?P<list>\w+)(?:(?P<sign>[:!])(?P<names>.+))?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One word of a list.

    Attributes:
        name: Stands for the word itself.
        fields: What else is said of it, by column; a person's pronouns by that of `they`.
    """

    name: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Role:
    """Whom or what a plot needs.

    Attributes:
        name: As the plot's text calls it.
        choices: The entries that can play it.
        is_open: Whether any word of whole lists can; what is not is cast first.
    """

    name: str
    choices: tuple[Entry, ...]
    is_open: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A place in a story: one of these sentences is told there, or none if it is optional."""

    choices: tuple[str, ...]
    is_optional: bool


@dataclass(frozen=True, slots=True)
class Exchange:
    """Ways to ask one thing, and ways to answer it; an opening is what later ones refer to."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    is_opening: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """A story's outline; one without lines is a talk.

    Attributes:
        name: What the file calls it.
        roles: Its cast.
        requests: Ways to ask for this story.
        lines: The story.
        exchanges: What can be asked after it.
    """

    name: str
    roles: tuple[Role, ...]
    requests: tuple[str, ...]
    lines: tuple[Line, ...]
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True, slots=True)
class Storybook:
    """All that was written for the demo.

    Attributes:
        words: Entries by list.
        plots: Those that tell a story.
        talks: Those that only answer questions.
        passages: Finished texts.
    """

    words: Mapping[str, tuple[Entry, ...]]
    plots: tuple[Plot, ...]
    talks: tuple[Plot, ...]
    passages: tuple[str, ...]


def read_storybook(folder: Path = STORIES_FOLDER) -> Storybook:
    """Reads `words.txt`, `plots/*.txt`, `talk.txt` and `passages.txt`.

    Raises:
        DemoError: A line cannot be understood; the message names it.
    """
    words = {name: tuple(entries) for name, entries in _read_words(folder / "words.txt")}
    plots = [_read_plot(block, words) for block in _plot_blocks(folder)]
    return Storybook(
        words=words,
        plots=tuple(plot for plot in plots if plot.lines),
        talks=tuple(plot for plot in plots if not plot.lines),
        passages=tuple(_blocks(folder / "passages.txt")),
    )


def _blocks(path: Path) -> list[str]:
    """The parts of a file between empty lines."""
    return [block.strip() for block in path.read_text(encoding="utf-8").split("\n\n") if block]


def _plot_blocks(folder: Path) -> Iterator[str]:
    for path in [*sorted((folder / "plots").glob("*.txt")), folder / "talk.txt"]:
        yield from _blocks(path)


def _read_words(path: Path) -> Iterator[tuple[str, list[Entry]]]:
    for block in _blocks(path):
        heading, *lines = [line for line in block.splitlines() if not line.startswith("#")] or [""]
        if not heading:
            continue
        name, _, columns = heading.removeprefix("[").partition("]")
        titles = columns.split(" | ") if columns else ["name"]
        yield name, [_entry([title.strip() for title in titles], line) for line in lines]


def _entry(titles: list[str], line: str) -> Entry:
    cells = [cell.strip() for cell in line.split(" | ")]
    if len(cells) != len(titles):
        raise DemoError(f"words.txt: {line[:60]!r} has {len(cells)} columns, not {len(titles)}")
    fields = dict(zip(titles, cells, strict=True))
    return Entry(cells[0], {**fields, **_PERSONAL.get(fields.get("they", ""), {})})


def _read_plot(block: str, words: Mapping[str, tuple[Entry, ...]]) -> Plot:
    first, *rest = block.splitlines()
    key, _, name = first.partition(": ")
    if key != "plot":
        raise DemoError(f"a plot begins with 'plot: ' and its name, not with {first[:60]!r}")
    roles: tuple[Role, ...] = ()
    requests: tuple[str, ...] = ()
    lines, exchanges = [], []
    for row in rest:
        key, _, value = row.partition(": ")
        if key == "cast":
            roles = tuple(_role(part, name, words) for part in value.split())
        elif key == "ask":
            requests = _choices(value)
        elif key in {"first", "then"}:
            questions, _, answers = value.partition(" => ")
            exchanges.append(Exchange(_choices(questions), _choices(answers), key == "first"))
        else:
            lines.append(Line(_choices(row.removeprefix("? ")), row.startswith("? ")))
    return Plot(name, roles, requests, tuple(lines), tuple(exchanges))


def _choices(text: str) -> tuple[str, ...]:
    return tuple(choice.strip() for choice in text.split(" / "))


def _role(text: str, plot: str, words: Mapping[str, tuple[Entry, ...]]) -> Role:
    """Reads `role=list`, `role=list|list`, `role=list:Only,These` or `role=list!Not,These`."""
    name, _, lists = text.partition("=")
    choices: list[Entry] = []
    is_open = True
    for part in lists.split("|"):
        found = _ROLE.fullmatch(part)
        if found is None or found["list"] not in words:
            raise DemoError(f"plot {plot!r}: there is no list of words for {text!r}")
        names = (found["names"] or "").split(",")
        is_open = is_open and found["sign"] != ":"
        for entry in words[found["list"]]:
            if found["sign"] is None or (entry.name in names) == (found["sign"] == ":"):
                choices.append(entry)
    if not choices:
        raise DemoError(f"plot {plot!r}: nobody can play {text!r}")
    return Role(name, tuple(choices), is_open)
