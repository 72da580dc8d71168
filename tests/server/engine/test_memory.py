from pathlib import Path

import pytest

from enginehouse_server.engine import memory


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB to be had and no control group; files are put into the folder."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  8000000 kB\nCached: 1 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    for name in ("_V1", "_V2"):
        files = tuple(tmp_path / f"{name}.{part}" for part in ("limit", "used", "stat"))
        monkeypatch.setattr(memory, name, files)
    return tmp_path


def _group(folder: Path, name: str, limit: str, used: int, stat: str) -> None:
    for part, text in (("limit", limit), ("used", str(used)), ("stat", stat)):
        (folder / f"{name}.{part}").write_text(text)


@pytest.mark.usefixtures("machine")
def test_without_a_control_group_it_is_what_the_machine_has() -> None:
    assert memory.available_bytes() == 8_000_000 * 1024


@pytest.mark.parametrize(
    ("name", "field"), [("_V2", "inactive_file"), ("_V1", "total_inactive_file")]
)
def test_a_control_group_lowers_it_and_unused_pages_of_files_do_not_count(
    machine: Path, name: str, field: str
) -> None:
    _group(machine, name, "1000000000\n", 700_000_000, f"anon 5\n{field} 200000000\nslab 7\n")
    assert memory.available_bytes() == 500_000_000


def test_a_group_without_a_limit_changes_nothing(machine: Path) -> None:
    _group(machine, "_V2", "max\n", 700_000_000, "inactive_file 0\n")
    assert memory.available_bytes() == 8_000_000 * 1024


def test_a_group_that_used_more_than_it_may_has_nothing_left(machine: Path) -> None:
    _group(machine, "_V2", "1000\n", 2000, "inactive_file 5\n")
    assert memory.available_bytes() == 0


def test_where_the_kernel_says_nothing_nothing_is_known(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert memory.available_bytes() is None


@pytest.mark.parametrize(("limit", "expected"), [("1000", 1000), ("max", 9216), ("99999", 9216)])
def test_what_there_is_in_all_is_what_a_group_grants(
    machine: Path, limit: str, expected: int
) -> None:
    assert memory.total_bytes() == 9 * 1024
    _group(machine, "_V2", limit, 1, "inactive_file 0\n")
    assert memory.total_bytes() == expected
    (machine / "meminfo").unlink()
    assert memory.total_bytes() == (None if limit == "max" else int(limit))


def test_this_machine_has_some() -> None:
    found = memory.available_bytes()
    assert found is None or found > 1 << 20
