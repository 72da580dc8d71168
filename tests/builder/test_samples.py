from pathlib import Path

import pytest

from enginehouse_builder.errors import SpecError
from enginehouse_builder.samples import read_samples, samples_for


def _file(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "samples.txt"
    file.write_bytes(content)
    return file


def test_the_shipped_samples_are_many_and_no_pairs() -> None:
    samples = read_samples(None)
    assert len(samples.inputs) >= 100
    assert all(one.text_pair is None for one in samples.inputs)


def test_a_line_is_a_text_and_a_tab_makes_a_pair(tmp_path: Path) -> None:
    content = "\ufeffeins\r\n\r\ntwo\tzwei\nthree\tdrei\tvier\n".encode()
    samples = read_samples(_file(tmp_path, content))
    assert samples.inputs == (("eins", None), ("two", "zwei"), ("three", "drei\tvier"))


def test_the_hash_is_of_the_file(tmp_path: Path) -> None:
    one = read_samples(_file(tmp_path, b"text\n")).sha256
    assert read_samples(_file(tmp_path, b"text")).sha256 != one


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_a_file_without_texts_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SpecError, match="holds no text"):
        read_samples(_file(tmp_path, content))


@pytest.mark.parametrize(("line", "side"), [(b"text\t", "after"), (b" \ttext", "before")])
def test_half_a_pair_is_refused_with_its_line(tmp_path: Path, line: bytes, side: str) -> None:
    with pytest.raises(SpecError, match=f"line 3 of .* no text {side} it"):
        read_samples(_file(tmp_path, b"one\n\n" + line + b"\nmore\n"))


def test_a_file_that_is_not_utf8_is_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="byte 3 is 0xfc"):
        read_samples(_file(tmp_path, "fr\u00fc\u00fch".encode("latin-1").replace(b"r", b"rr", 1)))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        read_samples(tmp_path / "none.txt")


def test_a_model_of_pairs_is_asked_some_pairs() -> None:
    inputs = samples_for(read_samples(None), accepts_pairs=True)
    pairs = [one for one in inputs if one.text_pair is not None]
    assert len(inputs) / 5 < len(pairs) < len(inputs) / 3


def test_own_pairs_are_asked_as_they_are(tmp_path: Path) -> None:
    samples = read_samples(_file(tmp_path, b"a\tb\nc\n"))
    assert samples_for(samples, accepts_pairs=True) == samples.inputs


def test_pairs_for_a_model_of_single_texts_are_refused(tmp_path: Path) -> None:
    samples = read_samples(_file(tmp_path, b"a\tb\nc\n"))
    with pytest.raises(SpecError, match="1 pairs, the first 'a'"):
        samples_for(samples, accepts_pairs=False)
