from collections.abc import Iterator
from pathlib import Path

import pytest

from enginehouse_server.engine.whole_file import replace_file


def test_content_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    replace_file(file, [b"one ", memoryview(b"and another")])
    assert file.read_bytes() == b"one and another"
    replace_file(file, [b"less"])
    assert file.read_bytes() == b"less"
    assert [*file.parent.iterdir()] == [file]


def test_what_fails_half_way_leaves_what_was_there_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")

    def parts() -> Iterator[bytes]:
        yield b"half of it"
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        replace_file(file, parts())
    assert file.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [file]
