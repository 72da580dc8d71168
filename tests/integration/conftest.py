"""A repository with a tiny model built by the real builder, and a server on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from enginehouse_client import Client
from tests.conftest import Checkpoint
from tests.fixtures.server import ServerProcess, enginehouse

MODEL = "tiny"


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


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as connected:
        yield connected
