"""Loads a classifier: manifest, files, tokenizer, engine; warms it up; and proves its answers.

Blocking and slow (seconds to minutes): run it off the event loop.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from enginehouse_builder.manifest import ClassifyTask, Engine, Manifest
from enginehouse_server.engine.base import EncoderEngine, EncoderLane, EncoderSpec, Logits, Shape
from enginehouse_server.engine.create import create_encoder
from enginehouse_server.engine.machine import Machine
from enginehouse_server.errors import ProbeError, RepositoryError
from enginehouse_server.scheduler import EncoderWork, LatencyModel, ShapeGrid
from enginehouse_server.text import TextInput, Tokenizer

from .choose import choose
from .machines import machine_for
from .verdict import Rebuild
from .verify import verify_files
from .version import name_of, read_version, tokenizer_file

__all__ = ["LoadSettings", "LoadedClassifier", "load_classifier"]

_log = logging.getLogger(__name__)
# Beyond that a larger batch computes no more tokens a second, and the next waits longer for it.
_BATCH_TOKENS_PER_THREAD, _LEAST_BATCH_TOKENS = 128, 256


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How to load; a limit of 0 leaves the manifest's, a higher one too.

    Attributes:
        num_threads: Processor threads of the engine.
        num_lanes: Batches that it computes side by side.
        max_tokens: Longest input.
        max_batch: Most inputs of a batch.
        max_batch_tokens: Most padded tokens of a batch of several inputs; 0 is what keeps the
            threads busy.
        required: The backend that must run it; empty for any.
        machine: This one; None to look at it.
    """

    num_threads: int
    num_lanes: int = 1
    max_tokens: int = 0
    max_batch: int = 0
    max_batch_tokens: int = 0
    required: str = ""
    machine: Machine | None = None


@dataclass(frozen=True, slots=True)
class LoadedClassifier:
    """A version that is warm and answers as certified.

    `max_tokens` is its longest input here; `passed_over` says of better engines why they do not
    serve.
    """

    manifest: Manifest
    task: ClassifyTask
    max_tokens: int
    chosen: Engine
    engine: EncoderEngine
    tokenizer: Tokenizer
    grid: ShapeGrid
    latency: LatencyModel
    passed_over: tuple[str, ...]


def load_classifier(
    folder: Path, settings: LoadSettings, check: Callable[[], None] = lambda: None
) -> LoadedClassifier:
    """Loads a version of a classifier.

    Args:
        folder: Of the version.
        settings: How to load.
        check: Called between files and between shapes, on several threads; what it raises
            ends the loading.

    Raises:
        RepositoryError: Files are missing, damaged, or of another manifest version.
        PlanMismatchError: No engine runs on this machine.
        ProbeError: No engine gives its certified answers here.
    """
    manifest = read_version(folder)
    task, name = manifest.classify, name_of(manifest)
    if task is None:
        raise RepositoryError(f"{name} is no classifier")
    for file in manifest.text:
        check()
        verify_files(folder, [file])
    max_tokens = min(settings.max_tokens or manifest.limits.max_tokens, manifest.limits.max_tokens)
    grid = _grid_of(manifest, settings, max_tokens)
    tokenizer = Tokenizer(folder / tokenizer_file(manifest), max_tokens)

    def load(built: Engine) -> EncoderEngine:
        for file in built.files:
            check()
            verify_files(folder, [file])
        spec = _spec(folder / built.model, built, manifest, task, grid, settings)
        engine = create_encoder(built.backend, spec)
        try:
            check()
            warm_up(engine, grid, name, check)
            prove(engine, manifest, built, tokenizer, grid)
        except BaseException:
            engine.close()
            raise
        return engine

    machine = settings.machine or machine_for([manifest])
    rebuild = Rebuild(manifest.model, folder.parent.parent)
    choice = choose(manifest.engines, load, rebuild, machine, settings.required)
    chosen = choice.built
    measured = {Shape(r.batch, r.length): r.median_ms / 1e3 for r in chosen.latency}
    return LoadedClassifier(
        manifest=manifest,
        task=task,
        max_tokens=max_tokens,
        chosen=chosen,
        engine=choice.loaded,
        tokenizer=tokenizer,
        grid=grid,
        latency=LatencyModel(grid, measured),
        passed_over=choice.passed_over,
    )


def warm_up(
    engine: EncoderEngine, grid: ShapeGrid, name: str, check: Callable[[], None] = lambda: None
) -> None:
    """Computes every shape once on every lane, so that no request pays for a compilation."""
    began = perf_counter()
    with ThreadPoolExecutor(len(engine.lanes)) as pool:
        list(pool.map(lambda lane: _warm_up_lane(lane, grid, check), engine.lanes))
    _log.info(
        "%s: warmed up %d shapes (batch of 1 to %d, length %d to %d) in %.1f s",
        name,
        len(grid.shapes),
        max(s.batch for s in grid.shapes),
        grid.lengths[0],
        grid.max_tokens,
        perf_counter() - began,
    )


def prove(
    engine: EncoderEngine, manifest: Manifest, chosen: Engine, tokenizer: Tokenizer, grid: ShapeGrid
) -> None:
    """Asks the manifest's probes.

    Raises:
        ProbeError: An answer is further from the certified one than the certificate's tolerance,
            or no probe is short enough to be asked.
    """
    certificate = chosen.certificate
    allowed = certificate.tolerance * certificate.scale
    too_long: list[int] = []
    for probe in chosen.probes:
        [encoding] = tokenizer.encode([TextInput(probe.text, probe.text_pair)], truncate=True)
        if encoding.full_length > tokenizer.max_tokens:
            too_long.append(encoding.full_length)
            continue  # a limit was lowered: this input is not served here
        shape = grid.shape_of(grid.bucket_of(len(encoding.ids)), 1)
        logits = _ask(engine.lanes[0], EncoderWork(0, 0, encoding.ids, encoding.type_ids), shape)
        error = float(np.abs(logits - np.array(probe.logits)).max())
        if not error <= allowed:  # also when it is not a number
            raise ProbeError(
                f"{name_of(manifest)}: the engine answers {probe.text[:40]!r} with logits "
                f"{error:.3g} away from those it was certified with ({certificate.runtime} on "
                f"{chosen.device}); at most {allowed:.3g} is allowed: build the model again on "
                "this machine"
            )
    if len(too_long) == len(chosen.probes):
        raise ProbeError(
            f"{name_of(manifest)}: no probe fits into {tokenizer.max_tokens} tokens, so that "
            f"nothing proves the engine's answers; raise --max-tokens to at least {min(too_long)}"
        )


def _spec(
    model: Path,
    built: Engine,
    manifest: Manifest,
    task: ClassifyTask,
    grid: ShapeGrid,
    settings: LoadSettings,
) -> EncoderSpec:
    return EncoderSpec(
        model=model,
        precision=built.precision,
        inputs=tuple(tensor.name for tensor in manifest.inputs),
        pad_id=task.pad_id,
        max_batch_tokens=max(s.num_tokens for s in grid.shapes),
        num_shapes=len(grid.shapes),
        num_threads=settings.num_threads,
        num_lanes=settings.num_lanes,
    )


def _warm_up_lane(lane: EncoderLane, grid: ShapeGrid, check: Callable[[], None]) -> None:
    row = [EncoderWork(0, 0, [1])]
    for shape in grid.shapes:
        check()
        lane.start(row, shape)
        lane.wait()


def _ask(lane: EncoderLane, work: EncoderWork, shape: Shape) -> Logits:
    lane.start([work], shape)
    logits: Logits = lane.wait()[0]
    return logits


def _grid_of(manifest: Manifest, settings: LoadSettings, max_tokens: int) -> ShapeGrid:
    """The manifest's buckets, cut down to the lowered limits."""
    limits = manifest.limits
    max_batch = settings.max_batch or limits.max_batch
    busy = max(_LEAST_BATCH_TOKENS, _BATCH_TOKENS_PER_THREAD * settings.num_threads)
    budget = settings.max_batch_tokens or min(busy, limits.max_batch_tokens)
    buckets = []
    for bucket in manifest.buckets:
        fits = [
            b for b in bucket.batches if b == 1 or (b <= max_batch and b * bucket.length <= budget)
        ]
        buckets.append((bucket.length, fits))
        if bucket.length >= max_tokens:
            break
    return ShapeGrid(buckets)
