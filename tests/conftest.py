"""What tests of more than one package share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fixtures.decoder_exports import DecoderExport

# Before torch is imported: its threads must not spin beside those of the engines.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Checkpoint = Callable[[str], Path]
Decoder = Callable[[str], "DecoderExport"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Gives the folder of a family's checkpoint, made once a session; tests only read it."""
    from tests.fixtures.checkpoints import make_checkpoint  # torch is slow to import

    folders: dict[str, Path] = {}

    def of_family(family: str) -> Path:
        if family not in folders:
            folders[family] = make_checkpoint(family, tmp_path_factory.mktemp(family))
        return folders[family]

    return of_family


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """Gives the export of a tiny decoder of a family, made once a session; tests only read it."""
    from tests.fixtures.decoder_exports import export_of
    from tests.fixtures.decoders import make_decoder

    exports: dict[str, DecoderExport] = {}

    def of_family(family: str) -> "DecoderExport":
        if family not in exports:
            folder = tmp_path_factory.mktemp(family)
            exports[family] = export_of(
                make_decoder(family, folder / "original"), folder / "export"
            )
        return exports[family]

    return of_family
