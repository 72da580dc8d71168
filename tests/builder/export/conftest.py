from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from enginehouse_builder.export import ExportedClassifier, export_classifier
from enginehouse_builder.resolve import resolve
from enginehouse_builder.spec import BuildSpec


class Export(NamedTuple):
    """An export with what it was made from."""

    spec: BuildSpec
    folder: Path
    exported: ExportedClassifier


Exporting = Callable[[str], Export]


@pytest.fixture(scope="session")
def export(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Exporting:
    """Gives the export of a family, made once a session."""
    exports: dict[str, Export] = {}

    def of_family(family: str) -> Export:
        if family not in exports:
            exports[family] = export_of(checkpoint(family), tmp_path_factory.mktemp("export"))
        return exports[family]

    return of_family


def export_of(model: Path, folder: Path, **settings: object) -> Export:
    spec = replace(BuildSpec(str(model), Path("repository"), Path("cache")), **settings)  # type: ignore[arg-type]
    resolved = resolve(spec, lambda _: None)
    return Export(spec, folder, export_classifier(resolved, spec, folder, lambda _: None))
