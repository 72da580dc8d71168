import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginehouse_server.errors import RepositoryError
from enginehouse_server.repository import scan


def test_versions_come_by_model_and_then_newest_first(tmp_path: Path) -> None:
    for name in ("b/1", "a/2", "a/10", "a/1"):
        (tmp_path / name).mkdir(parents=True)
    found = [(f.model, f.version, f.folder) for f in scan(tmp_path)]
    assert found == [
        ("a", 10, tmp_path / "a/10"),
        ("a", 2, tmp_path / "a/2"),
        ("a", 1, tmp_path / "a/1"),
        ("b", 1, tmp_path / "b/1"),
    ]


@pytest.mark.parametrize("name", [".tmp/1", "a/.tmp", "a/01", "a/0", "a/x", "a/-1", "a/¹"])
def test_what_is_no_version_is_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    assert scan(tmp_path) == []


def test_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "readme").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1").touch()
    assert scan(tmp_path) == []


def test_a_folder_that_cannot_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a/1", "lost+found/1", "z/1"):
        (tmp_path / name).mkdir(parents=True)
    iterdir = Path.iterdir

    def refusing(self: Path) -> Iterator[Path]:  # root may read whatever its mode says
        if self.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(self))
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", refusing)
    with caplog.at_level(logging.WARNING):
        assert [f.model for f in scan(tmp_path)] == ["a", "z"]
    assert "lost+found is passed over" in caplog.text
    assert "Permission denied" in caplog.text


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"nowhere cannot be read .*--repository"):
        scan(tmp_path / "nowhere")
