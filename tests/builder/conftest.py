"""Builds that tests of the builder share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Checkpoint

# As the command does, before anything imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Built = Callable[[str], Path]
BuiltDecoder = Callable[[str], Path]
DecoderCheckpoint = Callable[[str], Path]
MODEL = "tiny"
DECODER = "tiny-decoder"


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that all builds of the session share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def built(
    checkpoint: Checkpoint, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """Gives the version of a tiny BERT, built once for each precision; tests only read it."""
    from enginehouse_builder.display import Display
    from enginehouse_builder.pipeline import build
    from enginehouse_builder.spec import BuildSpec

    repository = tmp_path_factory.mktemp("repository")
    folders: dict[str, Path] = {}

    def of_precision(precision: str) -> Path:
        if precision not in folders:
            spec = BuildSpec(
                model=str(checkpoint("bert")),
                repository=repository,
                cache=cache_folder,
                name=MODEL,
                precision=precision,  # type: ignore[arg-type]
                max_tokens=48,
                max_batch=4,
            )
            folders[precision] = build(spec, Display(quiet=True)).folder
        return folders[precision]

    return of_precision


@pytest.fixture(scope="session")
def decoder_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> DecoderCheckpoint:
    """Gives the folder of a decoder's checkpoint, made once a session; tests only read it."""
    from tests.fixtures.decoders import make_decoder  # torch is slow to import

    folders: dict[str, Path] = {}

    def of_family(family: str) -> Path:
        if family not in folders:
            folders[family] = make_decoder(family, tmp_path_factory.mktemp(family))
        return folders[family]

    return of_family


@pytest.fixture(scope="session")
def built_decoder(
    decoder_checkpoint: DecoderCheckpoint,
    cache_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> BuiltDecoder:
    """Gives the version of a tiny Llama, built once for each precision; tests only read it."""
    from enginehouse_builder.display import Display
    from enginehouse_builder.pipeline import build
    from enginehouse_builder.spec import BuildSpec

    repository = tmp_path_factory.mktemp("repository")
    folders: dict[str, Path] = {}

    def of_precision(precision: str) -> Path:
        if precision not in folders:
            spec = BuildSpec(
                model=str(decoder_checkpoint("llama")),
                repository=repository,
                cache=cache_folder,
                name=DECODER,
                precision=precision,  # type: ignore[arg-type]
                max_batch=4,
                certify_minutes=0,
            )
            folders[precision] = build(spec, Display(quiet=True)).folder
        return folders[precision]

    return of_precision
