"""Loads a classifier: manifest, files, tokenizer, engine; warms it up; and proves its answers.

Blocking and slow (seconds to minutes): run it off the event loop.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from enginehouse_builder.manifest import ClassifyTask, Engine, Manifest
from enginehouse_server.engine.base import (
    EncoderEngine,
    EncoderLane,
    EncoderSpec,
    KernelKeeper,
    Logits,
    Shape,
)
from enginehouse_server.engine.create import computes_on_gpu, create_encoder
from enginehouse_server.engine.machine import Machine
from enginehouse_server.engine.threads import default_lanes
from enginehouse_server.errors import ProbeError, RepositoryError
from enginehouse_server.scheduler import EncoderWork, LatencyModel, ShapeGrid
from enginehouse_server.text import TextInput, Tokenizer

from .certify import certify_here, is_certified_elsewhere
from .certify_encoder import measure_encoder
from .choose import choose
from .machines import machine_for
from .plans import kernels_of, traits_of
from .state import StateFolder
from .verdict import Rebuild
from .verify import verify_files
from .version import name_of, read_version, tokenizer_file
from .warm import time_shapes, warm_up

__all__ = ["LoadSettings", "LoadedClassifier", "load_classifier"]

# Beyond that a larger batch computes no more tokens a second, and the next waits longer for it.
_BATCH_TOKENS_PER_THREAD, _LEAST_BATCH_TOKENS = 128, 256
_GPU_LANES = 2  # one computes while the other's batch is filled in and copied


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How to load; a limit of 0 leaves the manifest's, a higher one too.

    Attributes:
        num_threads: Processor threads of the engine.
        num_lanes: Batches that it computes side by side; 0 is what suits the engine.
        max_tokens: Longest input.
        max_batch: Most inputs of a batch.
        max_batch_tokens: Most padded tokens of a batch of several inputs; 0 is what keeps the
            threads busy.
        required: The backend that must run it; empty for any.
        machine: This one; None to look at it.
        cuda_binding: What drives CUDA for an engine on a GPU.
        state_dir: Where what is found out about engines is kept; None for nowhere.
    """

    num_threads: int
    num_lanes: int = 0
    max_tokens: int = 0
    max_batch: int = 0
    max_batch_tokens: int = 0
    required: str = ""
    machine: Machine | None = None
    cuda_binding: str = "cuda-core"
    state_dir: Path | None = None


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


class _Ready(NamedTuple):
    """An engine that may serve, its shapes, and seconds of those that were timed."""

    engine: EncoderEngine
    grid: ShapeGrid
    seconds: Mapping[Shape, float]


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
    tokenizer = Tokenizer(folder / tokenizer_file(manifest), max_tokens)

    def load(built: Engine) -> _Ready:
        for file in built.files:
            check()
            verify_files(folder, [file])
        on_gpu = computes_on_gpu(built.backend, settings.cuda_binding)
        grid = _grid_of(manifest, settings, max_tokens, on_gpu=on_gpu)
        model = folder / built.model
        spec = _spec(model, built, manifest, task, grid, settings, on_gpu=on_gpu)
        engine = create_encoder(built.backend, spec)
        try:
            check()
            warm_up(engine, grid, name, check, num_runs=2 if on_gpu else 1)
            prove(engine, manifest, built, tokenizer, grid)
            if is_certified_elsewhere(built, engine.device):
                state = StateFolder(settings.state_dir)
                certify_here(
                    *(engine, built, built.certificate, manifest, state),
                    lambda: measure_encoder(engine, grid, folder, manifest, check),
                    driver=machine.driver,
                    limits=f"{grid.max_tokens} tokens",
                )
            seconds = _measured(built, engine, on_gpu=on_gpu)
            seconds = seconds or time_shapes(engine, grid, check)
            if isinstance(engine, KernelKeeper):
                engine.keep_kernels()
            return _Ready(engine, grid, seconds)
        except BaseException:
            engine.close()
            raise

    machine = settings.machine or machine_for([manifest])
    rebuild = Rebuild(manifest.model, folder.parent.parent)
    choice = choose(manifest.engines, load, rebuild, machine, settings.required)
    ready = choice.loaded
    return LoadedClassifier(
        manifest=manifest,
        task=task,
        max_tokens=max_tokens,
        chosen=choice.built,
        engine=ready.engine,
        tokenizer=tokenizer,
        grid=ready.grid,
        latency=LatencyModel(ready.grid, ready.seconds),
        passed_over=choice.passed_over,
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
    *,
    on_gpu: bool,
) -> EncoderSpec:
    num_lanes = _GPU_LANES if on_gpu else default_lanes(settings.num_threads)
    return EncoderSpec(
        model=model,
        precision=built.precision,
        inputs=tuple(tensor.name for tensor in manifest.inputs),
        pad_id=task.pad_id,
        max_batch_tokens=max(s.num_tokens for s in grid.shapes),
        num_shapes=len(grid.shapes),
        num_threads=settings.num_threads,
        num_lanes=settings.num_lanes or num_lanes,
        cuda_binding=settings.cuda_binding,
        plan=traits_of(built.plan),
        kernels=kernels_of(built, settings.state_dir),
    )


def _ask(lane: EncoderLane, work: EncoderWork, shape: Shape) -> Logits:
    lane.start([work], shape)
    logits: Logits = lane.wait()[0]
    return logits


def _measured(built: Engine, engine: EncoderEngine, *, on_gpu: bool) -> Mapping[Shape, float]:
    """Seconds of every shape that the build timed; none that it timed where a GPU was not used."""
    if on_gpu and engine.device != built.device:
        return {}
    return {Shape(row.batch, row.length): row.median_ms / 1e3 for row in built.latency}


def _grid_of(
    manifest: Manifest, settings: LoadSettings, max_tokens: int, *, on_gpu: bool
) -> ShapeGrid:
    """The manifest's buckets, cut down to the lowered limits."""
    limits = manifest.limits
    max_batch = settings.max_batch or limits.max_batch
    busy = max(_LEAST_BATCH_TOKENS, _BATCH_TOKENS_PER_THREAD * settings.num_threads)
    if on_gpu:  # what it takes is what keeps a GPU busy
        busy = limits.max_batch_tokens
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
