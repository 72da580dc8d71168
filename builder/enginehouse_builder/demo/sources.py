"""The demo models, one after the other, each trained just before it is wanted.

The topics take seconds and are trained every time; the writer takes minutes and is kept in the
cache, by its texts, its code and what it was trained with.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from enginehouse_builder.cache import Cache, code_digest, key_of, versions_of
from enginehouse_builder.display import Display

from .classifier import train_topics
from .storybook import STORIES_FOLDER
from .writer import WriterReport, make_writer, read_report

__all__ = ["DemoSource", "MadeWriter", "cached_writer", "demo_sources"]


class DemoSource(NamedTuple):
    """A demo model to build.

    Attributes:
        name: To serve it under.
        folder: In `save_pretrained` form.
    """

    name: str
    folder: Path


class MadeWriter(NamedTuple):
    """A trained writer.

    Attributes:
        folder: In `save_pretrained` form, read-only.
        report: Of its training.
        was_made: Whether it was trained now.
    """

    folder: Path
    report: WriterReport
    was_made: bool


def demo_sources(
    scratch: Path, cache: Path, display: Display, *, with_writer: bool
) -> Iterator[DemoSource]:
    """Trains `topics` and, if wanted, `writer`, and shows how it goes.

    Args:
        scratch: A folder for what need not be kept.
        cache: The builds' cache folder.
        display: Where progress is shown.
        with_writer: Whether the writer is wanted.

    Raises:
        DemoError: A model could not be made, or is not good enough.
    """
    with display.stage("train") as stage:
        found = train_topics(scratch / "topics", report=stage.report)
        stage.result = (
            f"{found.num_correct} of {found.num_total} held-out sentences right "
            f"({found.accuracy:.1%})"
        )
    yield DemoSource("topics", scratch / "topics")
    if not with_writer:
        return
    with display.stage("train") as stage:
        writer = cached_writer(Cache(cache), report=stage.report)
        stage.result = (
            f"{writer.report.num_parameters / 1e6:.1f} million parameters, perplexity of new "
            f"stories {writer.report.perplexity:.2f}{'' if writer.was_made else ' (cached)'}"
        )
    yield DemoSource("writer", writer.folder)


def cached_writer(cache: Cache, *, report: Callable[[str], None]) -> MadeWriter:
    """The writer out of the cache, trained if it is not there.

    Raises:
        DemoError: It did not become good enough.
        BuildError: The cache's folder cannot be written.
    """
    key = key_of(
        code_digest(["enginehouse_builder.demo"]),
        versions_of("torch", "transformers", "tokenizers"),
        stories=_digest(STORIES_FOLDER),
    )

    def make(folder: Path) -> None:
        make_writer(folder, report=report)

    cached = cache.stage("writer", key, make)
    return MadeWriter(cached.folder, read_report(cached.folder), cached.was_made)


def _digest(folder: Path) -> str:
    """SHA-256 of a folder's texts, by name."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.txt")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
