from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginehouse_server.text import IncrementalText, Vocabulary
from tests.fixtures.vocabularies import KINDS, TEXTS, save_tokenizer

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vocabulary]:
    def made(kind: str) -> Vocabulary:
        folder: Path = tmp_path_factory.mktemp(kind)
        return Vocabulary(save_tokenizer(kind, folder))

    return {kind: made(kind) for kind in KINDS}


def pieces_of(
    vocabulary: Vocabulary, ids: list[int], before: list[int] | None = None, *, keep: bool = False
) -> list[str]:
    text = IncrementalText(vocabulary, before or [], keep_special_tokens=keep)
    return [*(text.push(i) for i in ids), text.finish()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_a_text_are_the_text(
    vocabularies: dict[str, Vocabulary], kind: str, text: str
) -> None:
    vocabulary = vocabularies[kind]
    ids = vocabulary.encode(f"{text} {text[:20]} {text}", add_special_tokens=True)
    for keep in (False, True):
        found = pieces_of(vocabulary, ids, keep=keep)
        assert "".join(found) == vocabulary.decode(ids, keep_special_tokens=keep)
        assert sum(map(bool, found)) > 3  # it does come in pieces


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@quick
def test_pieces_of_any_tokens_are_their_text(
    vocabularies: dict[str, Vocabulary], kind: str, data: st.DataObject
) -> None:
    vocabulary = vocabularies[kind]
    # Single bytes are tokens from 3 to 258 there: those that form no character are another test.
    tokens = st.integers(259 if kind == "byte_fallback" else 0, vocabulary.size - 1)
    ids = data.draw(st.lists(tokens, max_size=60))
    cut = data.draw(st.integers(0, len(ids)))
    whole = vocabulary.decode(ids)
    assert "".join(pieces_of(vocabulary, ids)) == whole
    after = "".join(pieces_of(vocabulary, ids[cut:], ids[:cut]))
    # Bytes of one character may lie on both sides of the cut: what is before it is given already.
    assert (vocabulary.decode(ids[:cut]) + after).replace("�", "") in (
        whole.replace("�", ""),
        vocabulary.decode(ids[:cut]).replace("�", "") + after.replace("�", ""),
    )


@given(texts=st.lists(st.text(max_size=12), max_size=8))
@quick
def test_any_text_survives_tokens_of_single_bytes(
    vocabularies: dict[str, Vocabulary], texts: list[str]
) -> None:
    for kind in ("byte_level", "byte_fallback"):
        vocabulary = vocabularies[kind]
        for text in texts:
            ids = vocabulary.encode(text, add_special_tokens=False)
            assert "".join(pieces_of(vocabulary, ids)) == vocabulary.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_no_piece_is_a_part_of_a_character(vocabularies: dict[str, Vocabulary], kind: str) -> None:
    vocabulary = vocabularies[kind]
    ids = vocabulary.encode("a 😀😀 b 東", add_special_tokens=False)
    found = pieces_of(vocabulary, ids)
    assert "".join(found) == "a 😀😀 b 東"
    assert not any("�" in piece for piece in found)
    assert "" in found  # bytes that were waited for


def test_bytes_that_never_become_a_character_are_shown_at_last(
    vocabularies: dict[str, Vocabulary],
) -> None:
    vocabulary = vocabularies["byte_fallback"]
    found = pieces_of(vocabulary, [3 + 0xFF] * 200)
    assert "".join(found).count("�") >= 100
    assert max(map(len, found)) < 200  # memory is bounded: they are not kept for the end
    letter = vocabulary.encode("x", add_special_tokens=False)[-1]
    assert "".join(pieces_of(vocabulary, [3 + 0xE2, letter])) == "�x"


def test_a_continuation_begins_with_its_space(vocabularies: dict[str, Vocabulary]) -> None:
    for kind in ("byte_level", "byte_fallback", "metaspace", "word_piece"):
        vocabulary = vocabularies[kind]
        ids = vocabulary.encode("The quick fox", add_special_tokens=True)
        for cut in range(1, len(ids)):
            before, after = ids[:cut], ids[cut:]
            text = vocabulary.decode(before) + "".join(pieces_of(vocabulary, after, before))
            assert text == "The quick fox", kind


def test_special_tokens_have_a_text_only_where_they_are_kept(
    vocabularies: dict[str, Vocabulary],
) -> None:
    vocabulary = vocabularies["byte_fallback"]
    ids = [*vocabulary.encode("The fox", add_special_tokens=True), 2]
    assert "".join(pieces_of(vocabulary, ids)) == "The fox"
    assert "".join(pieces_of(vocabulary, ids, keep=True)) == "<s> The fox</s>"


def test_token_texts_have_their_space(vocabularies: dict[str, Vocabulary]) -> None:
    vocabulary = vocabularies["byte_fallback"]
    ids = vocabulary.encode("The fox", add_special_tokens=True)
    assert "".join(map(vocabulary.token_text, ids)) == "<s> The fox"
    assert vocabulary.token_text(3 + 0xE2) == "�"
