"""Loading of a version from a repository, in this process."""

import asyncio
import shutil
import socket
from pathlib import Path

import pytest

from enginehouse_client import AsyncClient
from enginehouse_server.config import GrpcConfig, ServerConfig
from enginehouse_server.errors import NotReadyError, ProbeError
from enginehouse_server.repository import LoadSettings, load_classifier
from enginehouse_server.serving import Server

MODEL = "tiny"
SETTINGS = LoadSettings(num_threads=1, max_batch=2)


class Check:
    """Counts how often it is called, and ends the loading at the `last`."""

    def __init__(self, last: int = 1 << 30) -> None:
        self.num_calls = 0
        self._last = last

    def __call__(self) -> None:
        self.num_calls += 1
        if self.num_calls >= self._last:
            raise NotReadyError("that is enough")


def test_loading_ends_between_files_and_between_shapes(repository: Path) -> None:
    folder = repository / MODEL / "1"
    whole = Check()
    loaded = load_classifier(folder, SETTINGS, whole)
    loaded.engine.close()
    num_files = len(loaded.chosen.files) + len(loaded.manifest.text)
    assert whole.num_calls == num_files + 1 + len(loaded.grid.shapes)
    for last in (1, num_files, num_files + 3):
        check = Check(last)
        with pytest.raises(NotReadyError, match="enough"):
            load_classifier(folder, SETTINGS, check)
        assert check.num_calls == last


async def test_a_models_health_does_not_wait_for_other_models(
    repository: Path, tmp_path: Path
) -> None:
    for version in (1, 2):
        folder = tmp_path / MODEL / str(version)
        shutil.copytree(repository / MODEL / "1", folder)
        manifest = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(
            manifest.replace('"version": 1,', f'"version": {version},', 1)
        )
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = ServerConfig(
        repository=tmp_path,
        model=(f"{MODEL}=1", f"{MODEL}=2"),
        http_listen="127.0.0.1:0",
        grpc=GrpcConfig(listen=address),
    )
    server = Server(config)
    starting = asyncio.create_task(server.start())
    try:
        async with AsyncClient(address) as client:
            while not starting.done() and not await client.is_healthy(MODEL):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert not starting.done()
            assert (await client.classify(MODEL, "hello")).version == 1
            assert not await client.is_healthy()
            await starting
            assert await client.is_healthy()
    finally:
        starting.cancel()
        await server.close()


def test_an_engine_of_which_nothing_can_be_asked_is_not_served(repository: Path) -> None:
    settings = LoadSettings(num_threads=1, max_batch=1, max_tokens=2)
    with pytest.raises(ProbeError, match=r"no probe fits into 2 tokens.*raise --max-tokens to"):
        load_classifier(repository / MODEL / "1", settings)
