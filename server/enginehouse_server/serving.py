"""Wires the parts together and runs them from start to stop."""

import asyncio
import logging
import os
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from .building import build_engines, missing_engines
from .config import ServerConfig, join_address, split_address
from .engine.machine import Machine, probe_machine
from .engine.priority import compute_first, give_way
from .errors import ModelNotFoundError, NotReadyError, RepositoryError, UnloadableError
from .repository import (
    Catalog,
    Entry,
    Found,
    LoadedClassifier,
    LoadedDecoder,
    machine_for,
    read_version,
    scan,
)
from .rpc import GrpcServer
from .running import create_runner, load_version
from .tasks import Generator
from .telemetry import Metrics
from .telemetry.metrics import MetricsPage, ServedBy

__all__ = ["Server", "run"]

_log = logging.getLogger(__name__)
_LAST_TOKENS_S = 1.0  # for answers that the end of the drain cuts off


class Server:
    """The parts of one server. Belongs to the event loop."""

    def __init__(self, config: ServerConfig, *, gave_way: bool = False) -> None:
        """Takes the settings, and whether this thread gives way to those of engines."""
        self._config, self._gave_way = config, gave_way
        self._metrics = Metrics()
        self._catalog = Catalog(config.version_labels, self._on_change)
        self._grpc = GrpcServer(config.grpc, self._catalog, self._metrics)
        self._page: MetricsPage | None = None
        self._builds: asyncio.Task[None] | None = None
        self._is_closing = threading.Event()

    async def start(self) -> tuple[str, str]:
        """Listens, then loads every model. Each serves when it is ready, "" when all are.

        Returns:
            The gRPC and the HTTP address, with their real ports.

        Raises:
            OSError: An address cannot be listened on.
            UnloadableError: Not one model can be served, or one not on the required backend.
            ModelNotFoundError: A model that was asked for is not in the repository.
        """
        chosen = _chosen(scan(self._config.repository), self._config)
        _warn_of_labels(chosen, self._config)
        address = await self._grpc.start()
        host, port = split_address(self._config.http_listen)
        self._page = MetricsPage(self._metrics, host, port)
        for found in chosen:
            self._catalog.put(Entry(found.model, found.version, "loading", "it is being loaded"))
            await self._grpc.set_health(found.model, serving=False)
        machine = await asyncio.to_thread(_machine_for, chosen, self._config)
        for found in chosen:
            await self._load(found, machine)
            self._check_required(found)
        if not any(e.state == "ready" for e in self._catalog):
            raise UnloadableError(f"nothing in {self._config.repository} can be served")
        await self._grpc.set_health("", serving=True)
        if self._config.build_missing:
            missing = missing_engines(chosen, self._config.repository, machine)
            self._builds = asyncio.create_task(build_engines(missing))
        return address, join_address(host, self._page.port)

    async def stop(self) -> None:
        """Says not-serving, waits for balancers to see it, finishes what is in flight, stops."""
        config = self._config.grpc
        await self._grpc.say_not_serving()
        await self._end_builds()
        await asyncio.sleep(config.drain_delay_s)
        for entry in list(self._catalog):
            if entry.state == "ready":
                self._catalog.put(replace(entry, state="draining", reason="the server is stopping"))
        generators = [e.runner for e in self._catalog if isinstance(e.runner, Generator)]
        # Sequences that outlast the drain end as cancelled, and their callers are still told so.
        await asyncio.gather(
            self._grpc.stop(config.drain_timeout_s + _LAST_TOKENS_S),
            *(generator.close(config.drain_timeout_s) for generator in generators),
        )
        await self.close()

    async def close(self) -> None:
        """Releases everything, without waiting for anybody; what is being loaded soon ends."""
        self._is_closing.set()
        await self._end_builds()
        await self._grpc.stop(0)
        for entry in list(self._catalog):
            if entry.runner is not None and entry.loaded is not None:
                await entry.runner.close(0)
                entry.loaded.engine.close()
        if self._page is not None:
            await asyncio.to_thread(self._page.close)

    async def _end_builds(self) -> None:
        if self._builds is not None:
            self._builds.cancel()
            await asyncio.wait([self._builds])

    async def _load(self, found: Found, machine: Machine) -> None:
        loading = Entry(found.model, found.version, "loading", "it is being loaded")
        name = f"{found.model} version {found.version}"
        try:
            loaded = await asyncio.to_thread(self._load_blocking, found.folder, machine)
        except UnloadableError as error:
            _log.error("%s cannot be served: %s", name, error)
            self._catalog.put(replace(loading, state="unloadable", reason=str(error)))
            return
        except Exception as error:
            _log.exception("%s cannot be served", name)
            reason = f"loading failed: {type(error).__name__}; the server's log says more"
            self._catalog.put(replace(loading, state="unloadable", reason=reason))
            return
        runner = create_runner(loaded, self._config, self._metrics)
        _log.info(
            "%s is ready: %s %s (%s) on %s",
            name,
            loaded.engine.backend,
            loaded.engine.runtime_version,
            loaded.chosen.precision,
            loaded.engine.device,
        )
        served_by = ServedBy(loaded.engine.backend, loaded.chosen.precision, loaded.engine.device)
        self._metrics.set_engine(found.model, found.version, served_by)
        entry = Entry(found.model, found.version, "ready", "", loaded, runner)
        self._catalog.put(entry)
        await self._grpc.set_health(found.model, serving=True)

    def _check_required(self, found: Found) -> None:
        """Raises UnloadableError for a version that is not served on the required backend."""
        entry, required = (
            self._catalog.find(found.model, found.version),
            self._config.engine.require,
        )
        if required != "any" and entry.state != "ready":
            raise UnloadableError(f"--require {required} cannot be kept: {entry.reason}")

    def _load_blocking(self, folder: Path, machine: Machine) -> LoadedClassifier | LoadedDecoder:
        if self._gave_way:
            compute_first()
        return load_version(folder, self._config, machine, self._check_open)

    def _check_open(self) -> None:
        """Raises NotReadyError when the server is being closed; any thread may call."""
        if self._is_closing.is_set():
            raise NotReadyError("the server is stopping: nothing is loaded any more")

    def _on_change(self, entry: Entry) -> None:
        self._metrics.set_state(entry.model, entry.version, entry.state)


async def run(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT; prints the ready line on stdout when serving.

    A second signal ends the process at once, with 128 and the signal's number as a shell has it.
    """
    gave_way = give_way()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, stopping)
    server = Server(config, gave_way=gave_way)
    starting = asyncio.create_task(server.start())
    stopped = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            grpc_address, http_address = starting.result()
            line = f"enginehouse: serving gRPC on {grpc_address}, HTTP on {http_address}"
            print(line, flush=True)
            await stopped
            _log.info("stopping: finishing what is in flight")
            await server.stop()
    finally:
        starting.cancel()
        stopped.cancel()
        await server.close()


def _on_signal(number: signal.Signals, stopping: asyncio.Event) -> None:
    if stopping.is_set():
        _log.warning("stopped at once by a second signal, %s", number.name)
        os._exit(128 + number)
    stopping.set()


def _chosen(found: list[Found], config: ServerConfig) -> list[Found]:
    """The newest version of every model, or those that were asked for."""
    newest: dict[str, Found] = {}
    for version in found:
        newest.setdefault(version.model, version)
    if not config.models:
        return list(newest.values())
    by_version = {(f.model, f.version): f for f in found}
    chosen = []
    for name, versions in config.models.items():
        last = newest[name].version if name in newest else 0
        for number in sorted({version or last for version in versions}):
            if (name, number) not in by_version:
                raise ModelNotFoundError(_missing(name, number, found, config.repository))
            chosen.append(by_version[name, number])
    return chosen


def _machine_for(chosen: list[Found], config: ServerConfig) -> Machine:
    """This machine, as far as what is to be served or built needs to know it."""
    if config.build_missing:
        machine = probe_machine()
    else:
        manifests = []
        for found in chosen:
            with suppress(RepositoryError):  # loading it will say so
                manifests.append(read_version(found.folder))
        machine = machine_for(manifests)
    gpus = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in machine.gpus)
    _log.info("this machine: %s, %s", machine.processor, gpus or "no GPU")
    return machine


def _warn_of_labels(chosen: list[Found], config: ServerConfig) -> None:
    served = {(f.model, f.version) for f in chosen}
    for (name, label), version in config.version_labels.items():
        if (name, version) not in served:
            _log.warning(
                "--version-label %s:%s=%d names a version that is not served: requests for it "
                "will fail; serve it with --model %s=%d",
                *(name, label, version, name, version),
            )


def _missing(name: str, version: int, found: list[Found], repository: Path) -> str:
    known = ", ".join(f"{f.model}={f.version}" for f in found) or "nothing"
    wanted = f"{name}={version}" if version else name
    return f"{repository} has no model {wanted}; it has: {known}"
