"""Puts a finished version into the repository, whole or not at all.

    <repository>/<model>/.tmp-<random>/     being written, by the process that holds its lock
    <repository>/<model>/<version>/         arrived by one rename; never changes afterwards

Files of the cache are copied, not linked: a hard link would share its content with the cache, where
a person may edit or restore a file, and a published version must not change. The disk pays twice
for what the cache still holds; the cache is bounded. Files of an earlier version, which must not
change either, are linked where the file system can.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from .errors import PublishError
from .manifest import File, Manifest, write_manifest

__all__ = ["Item", "Published", "check_repository", "publish"]

_TEMPORARY = ".tmp-"
_COPY_BYTES = 1 << 22
_STALE_AFTER_S = 60.0  # between the making of a folder and its lock lies an instant


class Item(NamedTuple):
    """A file to publish.

    Attributes:
        path: In the version's folder, with forward slashes.
        source: What is copied.
        sha256: What its content must be, in hexadecimal.
        may_be_linked: Whether it never changes where it is, so that both may be one file.
    """

    path: str
    source: Path
    sha256: str
    may_be_linked: bool = False


class Published(NamedTuple):
    """A version that arrived."""

    folder: Path
    manifest: Manifest


def check_repository(repository: Path) -> None:
    """Makes the repository if need be and proves that it can be written, before slow work.

    Raises:
        PublishError: It cannot.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        probe = repository / f"{_TEMPORARY}{uuid.uuid4().hex}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise _refused(repository, error) from error


def publish(
    repository: Path,
    model: str,
    items: Sequence[Item],
    manifest_of: Callable[[int, Mapping[str, File]], Manifest],
) -> Published:
    """Publishes the next free version of a model.

    Several builds may do so at once: each gets a number of its own.

    Args:
        repository: The engine repository.
        model: Name as served.
        items: Every file but the manifest.
        manifest_of: Gives the manifest for a version and its files by path.

    Raises:
        PublishError: The repository cannot be written, or a source is not what it was.
    """
    parent = repository / model
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(parent)
        with _temporary(parent) as folder:
            files = {item.path: _copy(item, folder) for item in items}
            return _arrive(folder, files, manifest_of)
    except OSError as error:
        with suppress(OSError):
            parent.rmdir()  # succeeds only where there is nothing in it
        raise _refused(repository, error) from error


def _arrive(
    folder: Path,
    files: Mapping[str, File],
    manifest_of: Callable[[int, Mapping[str, File]], Manifest],
) -> Published:
    while True:
        version = _next_version(folder.parent)
        manifest = manifest_of(version, files)
        write_manifest(manifest, folder)
        for path in (*folder.rglob("*"), folder):
            _sync(path)
        target = folder.parent / str(version)
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue  # another build took the number meanwhile
            raise
        _sync(folder.parent)
        return Published(target, manifest)


def _next_version(parent: Path) -> int:
    taken = [int(p.name) for p in parent.iterdir() if p.name.isascii() and p.name.isdigit()]
    return max(taken, default=0) + 1


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A locked folder; whatever is still there at the end is removed."""
    folder = parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
    folder.mkdir(parents=True)  # another build of the model that failed may have tidied up
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        with suppress(OSError):
            parent.rmdir()  # the first build of a model failed: leave nothing


def _remove_stale(parent: Path) -> None:
    """Removes what builds left that died: nobody holds its lock."""
    for folder in parent.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < _STALE_AFTER_S:
                continue
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _copy(item: Item, folder: Path) -> File:
    target = folder / item.path
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    size = 0
    is_linked = item.may_be_linked and _link(item.source, target)
    with item.source.open("rb") as source, ExitStack() as stack:
        file = None if is_linked else stack.enter_context(target.open("xb"))
        while block := source.read(_COPY_BYTES):
            digest.update(block)
            if file is not None:
                file.write(block)
            size += len(block)
    if digest.hexdigest() != item.sha256:
        raise PublishError(
            f"{item.source} was changed since it was made: remove {item.source.parent} "
            "and build again"
        )
    if not is_linked:
        target.chmod(0o444)
    return File(item.path, digest.hexdigest(), size)


def _link(source: Path, target: Path) -> bool:
    """Whether both are one file now: not across disks, nor where a file system has no links."""
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(repository: Path, error: OSError) -> PublishError:
    return PublishError(
        f"the repository {repository} cannot be written ({error.strerror or error}): "
        "choose another with --repository or ENGINEHOUSE_REPOSITORY, or free its disk"
    )
