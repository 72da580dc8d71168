from hypothesis import given
from hypothesis import strategies as st

from enginehouse_server.text import StopStrings

pieces = st.lists(st.text("ab", max_size=3), max_size=12)
strings = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


def run(stops: StopStrings, given_pieces: list[str]) -> tuple[str, str | None]:
    shown = ""
    for piece in given_pieces:
        found = stops.push(piece)
        shown += found.text
        if found.stop is not None:
            return shown, found.stop
    return shown + stops.finish(), None


def expected(strings: list[str], text: str) -> tuple[str, str | None]:
    """By the definition: one character at a time."""
    for end in range(1, len(text) + 1):
        ending = [s for s in strings if text[:end].endswith(s)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(strings, pieces)
def test_the_first_string_is_found_wherever_pieces_are_cut(
    strings: list[str], pieces: list[str]
) -> None:
    assert run(StopStrings(strings, include=False), pieces) == expected(strings, "".join(pieces))


@given(strings, pieces)
def test_the_string_is_part_of_the_text_if_wanted(strings: list[str], pieces: list[str]) -> None:
    text, stop = expected(strings, "".join(pieces))
    assert run(StopStrings(strings, include=True), pieces) == (text + (stop or ""), stop)


def test_text_that_may_become_a_stop_is_held_back_until_decided() -> None:
    stops = StopStrings(["\n\nUser:"], include=False)
    assert stops.push("Hello\n") == ("Hello", None)
    assert stops.push("\nUs") == ("", None)
    assert stops.push("ed") == ("\n\nUsed", None)
    assert stops.push("\n\nUser: hi") == ("", "\n\nUser:")


def test_without_strings_nothing_is_held_back() -> None:
    stops = StopStrings([], include=False)
    assert stops.push("text") == ("text", None)
    assert stops.finish() == ""


def test_a_string_that_is_complete_too_early_does_not_count() -> None:
    stops = StopStrings(["ab"], include=False)
    assert stops.push("xab", may_stop=False) == ("xab", None)
    assert stops.push("a", may_stop=False) == ("", None)
    assert stops.push("b") == ("", "ab")
