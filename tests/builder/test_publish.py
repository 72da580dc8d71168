import hashlib
import multiprocessing
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse_builder.errors import PublishError
from enginehouse_builder.manifest import File, Manifest, read_manifest
from enginehouse_builder.publish import Item, Published, check_repository, publish

from .test_manifest import EXAMPLE

SHA256 = hashlib.sha256(b"content").hexdigest()


def _manifest(version: int, files: Mapping[str, File]) -> Manifest:
    return replace(EXAMPLE, version=version, text=tuple(files.values()))


def _publish(repository: Path, source: Path) -> Published:
    paths = "model.onnx", "tokenizer/tokenizer.json"
    return publish(
        repository, EXAMPLE.model, [Item(path, source, SHA256) for path in paths], _manifest
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source"
    file.write_text("content")
    return file


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_versions_are_numbered_from_one(repository: Path, source: Path) -> None:
    assert [_publish(repository, source).manifest.version for _ in range(3)] == [1, 2, 3]
    assert _names(repository / EXAMPLE.model) == {"1", "2", "3"}


def test_a_number_is_never_used_again_while_a_later_one_exists(
    repository: Path, source: Path
) -> None:
    (repository / EXAMPLE.model / "7").mkdir(parents=True)
    assert _publish(repository, source).folder.name == "8"


def test_a_version_holds_its_files_and_says_their_hashes(repository: Path, source: Path) -> None:
    published = _publish(repository, source)
    manifest = read_manifest(published.folder)
    assert manifest == published.manifest
    assert {file.path for file in manifest.text} == {"model.onnx", "tokenizer/tokenizer.json"}
    assert {file.size_bytes for file in manifest.text} == {7}
    assert (published.folder / "tokenizer" / "tokenizer.json").read_text() == "content"


def test_a_version_does_not_change_with_its_source(repository: Path, source: Path) -> None:
    published = _publish(repository, source)
    source.write_text("edited!")
    assert (published.folder / "model.onnx").read_text() == "content"
    assert (published.folder / "model.onnx").stat().st_mode & 0o222 == 0


def test_threads_that_publish_at_once_get_versions_of_their_own(
    repository: Path, source: Path
) -> None:
    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(lambda _: _publish(repository, source), range(16)))
    versions = sorted(one.manifest.version for one in published)
    assert versions == list(range(1, 17))
    for one in published:
        assert read_manifest(one.folder).version == int(one.folder.name)
    assert _names(repository / EXAMPLE.model) == {str(version) for version in versions}


def _publish_some(repository: Path, source: Path) -> None:
    for _ in range(5):
        _publish(repository, source)


def test_processes_that_publish_at_once_get_versions_of_their_own(
    repository: Path, source: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_publish_some, args=(repository, source)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert _names(repository / EXAMPLE.model) == {str(i) for i in range(1, 11)}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupted_publication_leaves_nothing(
    repository: Path, source: Path, error: BaseException
) -> None:
    def fail(_: int, __: Mapping[str, File]) -> Manifest:
        raise error

    with pytest.raises(type(error)):
        publish(repository, "model", [Item("model.onnx", source, SHA256)], fail)
    assert not _names(repository)


def test_a_failed_publication_keeps_earlier_versions(repository: Path, source: Path) -> None:
    _publish(repository, source)
    with pytest.raises(PublishError, match="cannot be written"):
        publish(
            repository, EXAMPLE.model, [Item("model.onnx", source / "missing", SHA256)], _manifest
        )
    assert _names(repository / EXAMPLE.model) == {"1"}


def test_what_a_killed_build_left_is_removed(repository: Path, source: Path) -> None:
    left = repository / EXAMPLE.model / ".tmp-0123"
    left.mkdir(parents=True)
    long_ago = time.time() - 3600
    os.utime(left, (long_ago, long_ago))
    _publish(repository, source)
    assert _names(repository / EXAMPLE.model) == {"1"}


def test_a_repository_that_is_a_file_is_refused(source: Path) -> None:
    with pytest.raises(PublishError, match="--repository"):
        check_repository(source)
    with pytest.raises(PublishError, match="--repository"):
        _publish(source, source)


def test_a_source_that_is_not_what_was_made_is_refused(repository: Path, source: Path) -> None:
    source.write_text("edited!")
    with pytest.raises(PublishError, match="was changed since it was made"):
        _publish(repository, source)
    assert not _names(repository)
