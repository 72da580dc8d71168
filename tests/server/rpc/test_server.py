"""Stopping the gRPC server, in a process of its own: what goes wrong there ends the process."""

import subprocess
import sys

NUM_STOPS = 1500  # one in some hundred went wrong
SCRIPT = f"""
import asyncio
from enginehouse_server.config import GrpcConfig
from enginehouse_server.repository import Catalog
from enginehouse_server.rpc import GrpcServer
from enginehouse_server.telemetry import Metrics

async def main():
    for _ in range({NUM_STOPS}):
        config = GrpcConfig(listen="127.0.0.1:0")
        server = GrpcServer(config, Catalog({{}}, lambda _: None), Metrics())
        await server.start()
        await server.stop(0)
        await server.stop(0)

asyncio.run(main())
"""


def test_a_server_that_stops_at_once_ends_its_process_in_order() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
