"""Publishes what a build made."""

import time
from collections.abc import Mapping
from pathlib import Path

from enginehouse_builder.manifest import File, Manifest, StageTime
from enginehouse_builder.publish import Published, publish
from enginehouse_builder.version_files import Parts, items_of, manifest_of

from .building import Building

__all__ = ["publish_parts"]


def publish_parts(building: Building, repository: Path, parts: Parts) -> Published:
    """Publishes a version.

    Raises:
        PublishError: The repository cannot take it.
    """
    with building.stage("publish") as stage:
        started = time.perf_counter()

        def manifest(version: int, files: Mapping[str, File]) -> Manifest:
            seconds = round(time.perf_counter() - started, 3)
            times = (*building.times, StageTime("publish", seconds))
            return manifest_of(parts, version, files, times)

        published = publish(repository, parts.model, items_of(parts), manifest)
        stage.result = str(published.folder)
    return published
