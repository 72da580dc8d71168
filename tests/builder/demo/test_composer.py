"""The writer's texts: what the files hold, and what is composed of them."""

import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from enginehouse_builder.demo.composer import Document, compose, tell
from enginehouse_builder.demo.error import DemoError
from enginehouse_builder.demo.storybook import STORIES_FOLDER, Line, Plot, Storybook, read_storybook

MALFORMED = {
    "a slot that was not filled": r"[$()|\\]| / |=>",
    "two spaces or one before a mark": r"  | [.,!?;:]",
    "a sentence that begins small": r"^[a-z]|[.!?] [a-z]",
    "two marks": r"[.,!?][.,!?]",
    "a word twice": r"\b(?!had\b)(\w+) \1\b",
    "a instead of an": r"\b[Aa] [aeiou](?!ne\b|ni|se)",
    "an instead of a": r"\b[Aa]n (?!hour|honest)[^aeiou]",
    "no end": r'[^.!?}"]$',
}


@pytest.fixture(scope="module")
def book() -> Storybook:
    return read_storybook()


@pytest.fixture(scope="module")
def documents(book: Storybook) -> list[Document]:
    return list(islice(compose(book, book.plots, book.passages, 7), 4000))


def stories(book: Storybook, number: int) -> list[str]:
    rng = random.Random(11)
    return [tell(book, plot, rng) for plot in book.plots for _ in range(number)]


def said(documents: list[Document]) -> list[str]:
    """What is told or answered; a question may be written in haste."""
    texts = [document.text for document in documents if document.text]
    return texts + [t.text for d in documents for t in d.turns if t.role != "user"]


def test_same_seed_composes_the_same(book: Storybook, documents: list[Document]) -> None:
    again = islice(compose(book, book.plots, book.passages, 7), 4000)
    assert list(again) == documents


def test_another_seed_composes_others(book: Storybook, documents: list[Document]) -> None:
    stories = {d.text for d in documents if d.text} - set(book.passages)
    others = islice(compose(book, book.plots, book.passages, 8), 4000)
    assert not stories & {document.text for document in others}


def test_no_story_is_told_twice(book: Storybook) -> None:
    told = stories(book, 50)
    assert len(set(told)) == len(told)


def test_no_story_says_a_sentence_twice(book: Storybook) -> None:
    for story in stories(book, 20):
        sentences = Counter(re.split(r"(?<=[.!?]) ", story))
        assert sentences.most_common(1)[0][1] == 1, story


@pytest.mark.parametrize("fault", MALFORMED)
def test_no_sentence_is_malformed(fault: str, book: Storybook, documents: list[Document]) -> None:
    plain = [text for text in said(documents) if not text.startswith("{")]
    for text in [*plain, *stories(book, 20), *book.passages]:
        for paragraph in text.split("\n\n"):
            if fault == "no end" and re.search(
                r"^(Yours,|With love|Your friend) |Dear \w+,$|^\d\. ", paragraph
            ):
                continue
            assert not re.search(MALFORMED[fault], paragraph), paragraph


def test_quotation_marks_are_closed(book: Storybook, documents: list[Document]) -> None:
    for text in [*said(documents), *stories(book, 20), *book.passages]:
        assert text.count('"') % 2 == 0, text


def test_every_plot_can_be_asked_for_and_asked_about(book: Storybook) -> None:
    assert len(book.plots) >= 30
    assert all(plot.requests and plot.exchanges for plot in book.plots)


def test_every_sentence_can_be_filled(book: Storybook) -> None:
    for plot in (*book.plots, *book.talks):
        for exchange in plot.exchanges:
            for text in (*plot.requests, *exchange.questions, *exchange.answers):
                one_line = Plot(plot.name, plot.roles, (), (_only(text),), ())
                assert "$" not in tell(book, one_line, random.Random(3))
        for line in plot.lines:
            for text in line.choices:
                one_line = Plot(plot.name, plot.roles, (), (_only(text),), ())
                assert "$" not in tell(book, one_line, random.Random(3))


def test_chats_alternate_and_end_with_an_answer(documents: list[Document]) -> None:
    chats = [[turn.role for turn in d.turns if turn.role != "system"] for d in documents]
    for roles in filter(None, chats):
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_texts_are_small(book: Storybook) -> None:
    files = list(STORIES_FOLDER.rglob("*.txt"))
    assert sum(file.stat().st_size for file in files) < 500_000
    assert len(set(book.passages)) == len(book.passages)


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ("cast: hero=nobody\n$hero sang.", "no list of words for 'hero=nobody'"),
        ("cast: hero=adult:Nemo\n$hero sang.", "nobody can play 'hero=adult:Nemo'"),
    ],
)
def test_wrong_cast_is_named(plot: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=message):
        read_storybook(_folder_with(tmp_path, plot))


@pytest.mark.parametrize(
    ("line", "message"),
    [("$dragon sang.", "no word \\$dragon"), ("$adult.age sang.", "\\$adult.age names no column")],
)
def test_unknown_word_is_named(line: str, message: str, tmp_path: Path) -> None:
    wrong = read_storybook(_folder_with(tmp_path, line))
    with pytest.raises(DemoError, match=message):
        tell(wrong, wrong.plots[0], random.Random(0))


def _only(text: str) -> Line:
    return Line((text,), is_optional=False)


def _folder_with(folder: Path, plot: str) -> Path:
    (folder / "plots").mkdir()
    (folder / "plots" / "one.txt").write_text(f"plot: one\n{plot}\n", encoding="utf-8")
    (folder / "words.txt").write_text("[adult] name | they\nMara | she\n", encoding="utf-8")
    (folder / "talk.txt").write_text("plot: talk\nthen: Hello! => Hello!\n", encoding="utf-8")
    (folder / "passages.txt").write_text("The sea was calm.\n", encoding="utf-8")
    return folder
