"""The processes of a measurement: servers, the floor, and the load generator."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

__all__ = ["DecoderFloor", "Floor", "Load", "Process", "Served", "run_generate_load", "run_load"]

_READY = re.compile(r"serving gRPC on (\S+), HTTP on (\S+)")

Load = dict[str, Any]  # the JSON of a load test


class Process:
    """A program in Python that says a line when it is ready, and answers lines with lines."""

    def __init__(self, *command: str | Path, python: str | Path = sys.executable) -> None:
        self._command = [str(python), *map(str, command)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._on_line(self.read())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def process_id(self) -> int:
        """Of the operating system."""
        return self._process.pid

    def read(self) -> str:
        """The next line of its output.

        Raises:
            RuntimeError: If it has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} ended with {self._process.wait()}")
        return line

    def ask(self, line: str) -> str:
        """Its answer to a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        return self.read()

    def measure(self, line: str) -> float:
        """The figure that it answers."""
        return float(self.ask(line))

    def _on_line(self, line: str) -> None:
        """Takes the line that says that it is ready."""


class Served(Process):
    """A server on free ports; `naive` for the one to compare with."""

    def __init__(self, version: Path, *flags: str, naive: bool = False) -> None:
        command = ["-m", "bench.naive", str(version)]
        if not naive:
            command = ["-m", "enginehouse_client", "serve", "--log-level", "warning", *flags]
            command += ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
            command += ["--repository", str(version.parent.parent), "--model", version.parent.name]
        super().__init__(*command)
        self.model = version.parent.name
        self.address = self.http_address = ""

    def _on_line(self, line: str) -> None:
        ready = _READY.search(line)
        assert ready, line
        self.address, self.http_address = ready.groups()


class Floor(Process):
    """The floor's process."""

    def __init__(self, version: Path, texts_file: Path, num_lanes: int = 1) -> None:
        super().__init__("-m", "bench.floor", version, texts_file, str(num_lanes))

    def _on_line(self, line: str) -> None:
        print(f"  floor of {self._command[3]}: {line.strip()}", flush=True)


class DecoderFloor(Process):
    """The process of generation's floor."""

    def __init__(self, version: Path) -> None:
        super().__init__("-m", "bench.decoder_floor", version)


def run_load(server: Served, texts_file: Path, *flags: str | float) -> Load:
    """Runs the load generator of Classify against a server, in a process of its own."""
    return _load("classify", server, "--texts", texts_file, *flags)


def run_generate_load(server: Served, *flags: str | float) -> Load:
    """Runs that of Generate likewise."""
    return _load("generate", server, *flags)


def _load(task: str, server: Served, *flags: str | float | Path) -> Load:
    command = [sys.executable, "-m", "enginehouse_client", "loadtest", task]
    given: Sequence[str | float | Path] = (
        *("--target", server.address, "--model", server.model),
        *("--output", "json", *flags),
    )
    found = subprocess.run(
        [*command, *map(str, given)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    result: Load = json.loads(found.stdout)
    return result
