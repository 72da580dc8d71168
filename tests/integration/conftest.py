"""A repository with a tiny model built by the real builder, and a server on it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from enginehouse_client import Client
from tests.conftest import Checkpoint
from tests.fixtures.server import ServerProcess, enginehouse

MODEL, WRITER = "tiny", "writer"


class Writer(NamedTuple):
    """A repository with a decoder, and the checkpoint that it was made from."""

    repository: Path
    checkpoint: Path


@pytest.fixture(scope="session")
def repository(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One version of a tiny BERT with three labels; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("repository")
    cache = tmp_path_factory.mktemp("cache")
    found = enginehouse(
        *("build", "--model", checkpoint("bert"), "--name", MODEL),
        *("--repository", folder, "--cache-dir", cache),
    )
    assert found.returncode == 0, found.stderr
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[ServerProcess]:
    """A server with small limits, so that they can be reached."""
    with ServerProcess(repository, "--max-inputs", "8", "--max-message-bytes", "65536") as running:
        yield running


@pytest.fixture(scope="session")
def writer(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """A tiny decoder with a chat template, beside a copy of the classifier."""
    from tests.fixtures.decoder_version import publish_decoder

    folder = tmp_path_factory.mktemp("decoders")
    shutil.copytree(repository / MODEL, folder / MODEL)
    checkpoint = publish_decoder(folder, WRITER, tmp_path_factory.mktemp("original"))
    return Writer(folder, checkpoint)


@pytest.fixture(scope="session")
def writer_server(writer: Writer) -> Iterator[ServerProcess]:
    """A server with few places, so that sequences wait, and little patience with readers."""
    flags = ("--max-running", "4", "--max-num-sequences", "8", "--max-step-tokens", "64")
    with ServerProcess(writer.repository, *flags, "--stream-stall-timeout-s", "1") as running:
        yield running


@pytest.fixture
def writer_client(writer_server: ServerProcess) -> Iterator[Client]:
    with Client(writer_server.address) as connected:
        yield connected


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as connected:
        yield connected
