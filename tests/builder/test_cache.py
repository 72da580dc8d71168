import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from enginehouse_builder.cache import Cache, code_digest, key_of
from enginehouse_builder.errors import BuildError


class Writer:
    """Writes a file and counts how often."""

    def __init__(self, text: str = "result", seconds: float = 0.0) -> None:
        self.calls = 0
        self._text = text
        self._seconds = seconds

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        time.sleep(self._seconds)
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(self._text)


def _debris(cache: Path) -> list[Path]:
    return list(cache.glob("*/.tmp-*"))


def test_a_result_is_made_once_and_found_again(tmp_path: Path) -> None:
    make = Writer()
    first = Cache(tmp_path).stage("export", "key", make)
    again = Cache(tmp_path).stage("export", "key", make)
    assert make.calls == 1
    assert first.folder == again.folder
    assert (again.folder / "sub" / "file").read_text() == "result"
    assert first.was_made
    assert not again.was_made


def test_other_keys_and_stages_are_other_results(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    folders = {cache.stage(*name, Writer()).folder for name in (("a", "1"), ("a", "2"), ("b", "1"))}
    assert len(folders) == 3


def test_files_of_a_result_are_read_only(tmp_path: Path) -> None:
    folder = Cache(tmp_path).stage("export", "key", Writer()).folder
    assert (folder / "sub" / "file").stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupted_stage_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(type(error)):
        Cache(tmp_path).stage("export", "key", fail)
    assert not _debris(tmp_path)
    assert not (tmp_path / "export" / "key").exists()
    assert Cache(tmp_path).stage("export", "key", Writer()).was_made


def test_callers_with_one_key_wait_for_the_first(tmp_path: Path) -> None:
    make = Writer(seconds=1.2)
    said: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: Cache(tmp_path, report=said.append).stage("export", "key", make)
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.calls == 1
    assert said == ["another build makes the same export: waiting for it"] * 3


def _stage_and_hang(cache: Path) -> None:
    def hang(folder: Path) -> None:
        (folder / "half").write_text("half")
        (cache / "hanging").touch()
        time.sleep(60)

    Cache(cache).stage("export", "key", hang)


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_stage_and_hang, args=(tmp_path,))
    process.start()
    while not (tmp_path / "hanging").exists():
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert _debris(tmp_path)
    with Cache(tmp_path) as cache:
        cache.stage("certify", "other key", Writer())
    assert not _debris(tmp_path)
    assert Cache(tmp_path).stage("export", "key", Writer()).was_made


def test_a_folder_being_made_is_not_removed_by_another_build(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        with Cache(tmp_path) as other:
            other.stage("certify", "key", Writer())
        (folder / "file").write_text("still here")

    assert (Cache(tmp_path).stage("export", "key", make).folder / "file").exists()


def test_a_result_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    cache, make = Cache(tmp_path), Writer()
    (cache.stage("export", "key", make).folder / "sub" / "file").unlink()
    assert (cache.stage("export", "key", make).folder / "sub" / "file").exists()
    assert make.calls == 2


def test_results_unused_for_longest_are_pruned_first(tmp_path: Path) -> None:
    for age, key in enumerate(["newer", "older", "oldest"]):
        folder = Cache(tmp_path).stage("export", key, Writer("x" * 1000)).folder
        _age(folder, age)
    with Cache(tmp_path, max_bytes=2800) as cache:
        cache.stage("export", "now", Writer("x" * 1000))
        assert len(list((tmp_path / "export").iterdir())) == 4
    left = {path.name for path in (tmp_path / "export").iterdir()}
    assert left == {"now", "newer"}


def _age(folder: Path, days: int) -> None:
    then = time.time() - 86400 * (1 + days)
    os.utime(folder, (then, then))


def test_what_a_build_was_given_stays_however_long_it_takes(tmp_path: Path) -> None:
    with Cache(tmp_path, max_bytes=10) as cache:
        folder = cache.stage("export", "key", Writer()).folder
        _age(folder, 1)
        cache.prune()
        assert folder.exists()
        _age(folder, 1)
        cache.stage("certify", "key", Writer())  # says to other processes too that it is in use
        Cache(tmp_path, max_bytes=10).prune()
        assert folder.exists()


def test_results_that_other_builds_remove_do_not_disturb_pruning(tmp_path: Path) -> None:
    folder = Cache(tmp_path).stage("export", "key", Writer()).folder
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            (folder / "more").write_text("x")
            (folder / "more").unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(300):
            Cache(tmp_path).prune()
    finally:
        stop.set()
        thread.join()


def test_results_in_use_are_not_pruned(tmp_path: Path) -> None:
    Cache(tmp_path).stage("export", "one", Writer())
    Cache(tmp_path).stage("export", "two", Writer())
    Cache(tmp_path, max_bytes=10).prune()
    assert len(list((tmp_path / "export").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="--cache-dir"):
        Cache(tmp_path / "file").stage("export", "key", Writer())


def test_a_key_changes_with_code_tools_and_inputs() -> None:
    keys = {
        key_of("code", {"torch": "2"}, precision="fp32"),
        key_of("other", {"torch": "2"}, precision="fp32"),
        key_of("code", {"torch": "3"}, precision="fp32"),
        key_of("code", {"torch": "2"}, precision="int8"),
    }
    assert len(keys) == 4
    assert key_of("c", {}, a=1, b=[2]) == key_of("c", {}, b=[2], a=1)


def test_the_code_digest_covers_a_package() -> None:
    assert code_digest(["enginehouse_builder.certify"]) != code_digest(
        ["enginehouse_builder.cache"]
    )
    with pytest.raises(LookupError):
        code_digest(["enginehouse_builder.nothing"])
