"""Results of stages, kept by the content that they were made from.

    <cache>/<stage>/<key>/          a finished result; its files are read-only
    <cache>/<stage>/.tmp-<key>/     one being made, by whoever holds the lock of that key
    <cache>/locks/<stage>-<key>

The key holds everything that a result depends on: the stage's own code, the versions of what it
calls, its inputs and its settings. Knows nothing of what stages do.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Self

from filelock import FileLock, Timeout

from .errors import BuildError
from .manifest import sha256_of

__all__ = [
    "DEFAULT_MAX_BYTES",
    "Cache",
    "Cached",
    "code_digest",
    "key_of",
    "sealed_hashes",
    "versions_of",
]

DEFAULT_MAX_BYTES = 20 * 2**30

_FILE_LIST = ".files.json"
_SILENT_S = 1.0  # waited for another build before that is said
_IN_USE_S = 3600.0  # a build may still be reading what it asked for this long ago


class Cached(NamedTuple):
    """A stage's result.

    Attributes:
        folder: Where it lies, read-only.
        seconds: How long it took to make now; 0 if it was there already.
    """

    folder: Path
    seconds: float

    @property
    def was_made(self) -> bool:
        """Whether it was not there before."""
        return self.seconds > 0


class Cache:
    """A folder of stage results that any number of builds share at once.

    What it gave out is there until its context ends; then the folder is pruned.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int = DEFAULT_MAX_BYTES,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Takes the folder, made when first needed, and the size that it is pruned to.

        `report` is told when another build is waited for.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._report = report
        self._given: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.prune()

    def stage(self, name: str, key: str, make: Callable[[Path], None]) -> Cached:
        """The result of a stage: the one that is there, or else what `make` writes.

        A second caller with the same key waits for the first. If `make` fails or is interrupted
        its folder is removed and nothing is kept.

        Args:
            name: The stage, a folder's name.
            key: From `key_of`.
            make: Writes the result into the empty folder that it is given.

        Raises:
            BuildError: The cache's folder cannot be written.
        """
        target = self._folder / name / key
        self._given.add(target)
        self._keep_given()
        with self._locked(name, key):
            if _is_whole(target):
                return Cached(target, 0.0)
            _remove(target)
            started = time.perf_counter()
            self._make(target, make)
            seconds = time.perf_counter() - started
        return Cached(target, seconds)

    def file(self, name: str, key: str) -> Path:
        """Where something is kept that builds add to, and that no result depends on."""
        return self._folder / name / key

    def _acquire(self, lock: FileLock, name: str) -> None:
        try:
            lock.acquire(timeout=_SILENT_S)
        except Timeout:
            self._report(f"another build makes the same {name}: waiting for it")
            lock.acquire()

    def _keep_given(self) -> None:
        """Shows other processes that what was given out is in use still."""
        for target in self._given:
            with suppress(OSError):  # it is not made yet, or another user's
                os.utime(target)

    def _make(self, target: Path, make: Callable[[Path], None]) -> None:
        folder = target.with_name(f".tmp-{target.name}")
        # What is there was left by a process that died: this one holds the lock.
        _remove(folder)
        try:
            folder.mkdir(parents=True)
            make(folder)
            _seal(folder)
            folder.rename(target)
        except BaseException:
            _remove(folder)
            raise

    @contextmanager
    def _locked(self, name: str, key: str) -> Iterator[None]:
        folder = self._folder / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{name}-{key}")
            self._acquire(lock, name)
        except OSError as error:
            raise BuildError(
                f"the cache folder {self._folder} cannot be written ({error}): choose another "
                "with --cache-dir or ENGINEHOUSE_CACHE"
            ) from error
        with lock:
            lock.release()  # `with` acquired it once more
            yield

    def prune(self) -> None:
        """Removes what dead builds left, then the results that were not used for longest."""
        self._keep_given()
        entries = sorted((e for e in self._folder.glob("*/*") if e.is_dir()), key=_last_used)
        total = 0
        for entry in reversed(entries):
            if entry.name.startswith(".tmp-"):
                self._remove_unless_locked(entry)
                continue
            total += _size(entry)
            is_idle = entry not in self._given and time.time() - _last_used(entry) > _IN_USE_S
            if total > self._max_bytes and is_idle:
                self._remove_unless_locked(entry)

    def _remove_unless_locked(self, entry: Path) -> None:
        key = entry.name.removeprefix(".tmp-")
        lock = FileLock(self._folder / "locks" / f"{entry.parent.name}-{key}")
        try:
            with lock.acquire(timeout=0):
                _remove(entry)
        except Timeout:
            return


def key_of(code: str, tools: Mapping[str, str], **inputs: object) -> str:
    """The key of a stage's result: SHA-256, in hexadecimal.

    Args:
        code: From `code_digest`.
        tools: From `versions_of`.
        inputs: Whatever else decides the result, as JSON can hold it.
    """
    document = {"code": code, "tools": dict(tools), "inputs": inputs}
    text = json.dumps(document, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest(modules: Sequence[str]) -> str:
    """SHA-256 of the source of modules and packages, found without importing them."""
    digest = hashlib.sha256()
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise LookupError(f"there is no module {module}")
        origin = Path(spec.origin)
        is_package = spec.submodule_search_locations is not None
        for path in sorted(origin.parent.rglob("*.py")) if is_package else [origin]:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of installed packages, by name."""
    return {package: version(package) for package in packages}


def sealed_hashes(folder: Path) -> dict[Path, str]:
    """SHA-256 of a result's files as they were made, by path."""
    seals = json.loads((folder / _FILE_LIST).read_text(encoding="utf-8"))
    return {folder / name: sha256 for name, (_, sha256) in seals.items()}


def _seal(folder: Path) -> None:
    """Notes every file's size and hash and makes the files read-only."""
    files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
    seals = {name: (file.stat().st_size, sha256_of(file)) for name, file in files.items()}
    (folder / _FILE_LIST).write_text(json.dumps(seals), encoding="utf-8")
    for file in files.values():
        file.chmod(0o444)


def _is_whole(folder: Path) -> bool:
    """Whether every file is there in its size: someone may have tidied up by hand."""
    try:
        seals = json.loads((folder / _FILE_LIST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, (size, _) in seals.items())
    except (OSError, ValueError):
        return False


def _last_used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(entry: Path) -> int:
    """Bytes of a result's files; another build may be removing it."""
    total = 0
    for folder, _, names in os.walk(entry):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(folder) / name).stat().st_size
    return total


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
