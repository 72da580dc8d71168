from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.client.fake_server import FakeServer, running, running_in_thread


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """For tests that block."""
    with running_in_thread(FakeServer()) as fake:
        yield fake


@pytest_asyncio.fixture
async def aio_server() -> AsyncIterator[FakeServer]:
    """For tests in the server's own event loop."""
    async with running(FakeServer()) as fake:
        yield fake
