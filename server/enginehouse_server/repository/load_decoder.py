"""Loads a decoder: manifest, files, tokenizer, template, engine and cache; and proves its answers.

Blocking and slow (seconds to minutes): run it off the event loop.
"""

import logging
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

from enginehouse_builder.manifest import DecoderEngine as BuiltDecoder
from enginehouse_builder.manifest import GenerateTask, Manifest, StepTime
from enginehouse_server.engine.base import KernelKeeper
from enginehouse_server.engine.create import computes_on_gpu, create_decoder
from enginehouse_server.engine.decoder import DecoderEngine, DecoderSpec, LayerGeometry
from enginehouse_server.engine.machine import Machine
from enginehouse_server.engine.memory import available_bytes
from enginehouse_server.errors import PlanMismatchError, RepositoryError
from enginehouse_server.sampling import StructureCompiler
from enginehouse_server.text import ChatTemplate, Vocabulary, read_chat_template

from .certify import certify_here, is_certified_elsewhere
from .certify_decoder import measure_decoder
from .choose import choose
from .machines import machine_for
from .plans import kernels_of, traits_of
from .prove_decoder import prove_decoder
from .state import StateFolder
from .verdict import Rebuild
from .verify import verify_files
from .version import name_of, read_version, tokenizer_file
from .warm import time_steps, warm_up_decoder

__all__ = ["DecoderSettings", "LoadedDecoder", "load_decoder"]

_log = logging.getLogger(__name__)
_SHARE_OF_FREE_MEMORY = 0.5
_CACHE_WITHOUT_A_WORD = 1 << 30  # bytes, where the kernel does not say what is free


@dataclass(frozen=True, slots=True)
class DecoderSettings:
    """How to load; a limit of 0 leaves the manifest's, a higher one too.

    Attributes:
        num_threads: Processor threads of the engine.
        cache_bytes: Most memory for cached keys and values; 0 is half of what is free.
        max_tokens: Longest sequence, prompt and answer.
        max_running: Most sequences that run at once.
        max_step_tokens: Most tokens of a step.
        required: The backend that must run it; empty for any.
        machine: This one; None to look at it.
        cuda_binding: What drives CUDA for an engine on a GPU.
        state_dir: Where what is found out about engines is kept; None for nowhere.
    """

    num_threads: int
    cache_bytes: int = 0
    max_tokens: int = 0
    max_running: int = 0
    max_step_tokens: int = 0
    required: str = ""
    machine: Machine | None = None
    cuda_binding: str = "cuda-core"
    state_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class LoadedDecoder:
    """A version that answers as certified; the engine's limits are those that count here.

    `step_times` are the build's, or where it could not run the engine those of here; `passed_over`
    says of better engines why they do not serve.
    """

    manifest: Manifest
    task: GenerateTask
    chosen: BuiltDecoder
    engine: DecoderEngine
    step_times: tuple[StepTime, ...]
    vocabulary: Vocabulary
    template: ChatTemplate | None
    structures: StructureCompiler | None
    passed_over: tuple[str, ...]


class _Ready(NamedTuple):
    """An engine that may serve, and what its steps take."""

    engine: DecoderEngine
    step_times: tuple[StepTime, ...]


def load_decoder(
    folder: Path, settings: DecoderSettings, check: Callable[[], None] = lambda: None
) -> LoadedDecoder:
    """Loads a version of a decoder.

    Args:
        folder: Of the version.
        settings: How to load it.
        check: Called every now and then; what it raises ends the loading.

    Raises:
        RepositoryError: Files are missing, damaged, or of another manifest version.
        PlanMismatchError: No engine runs on this machine, or its cache has no room.
        ProbeError: No engine gives its certified answers here.
    """
    manifest = read_version(folder)
    task, name = manifest.generate, name_of(manifest)
    if task is None:
        raise RepositoryError(f"{name} does not generate")
    for listed in manifest.text:
        check()
        verify_files(folder, [listed])
    file = folder / tokenizer_file(manifest)
    vocabulary, template = Vocabulary(file), read_chat_template(file.parent)
    structures = _structures(file, task, name)

    def load(built: BuiltDecoder) -> _Ready:
        for listed in built.files:
            check()
            verify_files(folder, [listed])
        check()
        on_gpu = computes_on_gpu(built.backend, settings.cuda_binding)
        spec = _spec(folder, manifest, built, task, settings, on_gpu=on_gpu)
        engine = create_decoder(built.backend, spec)
        try:
            if on_gpu:
                warm_up_decoder(engine, name, check)
            prove_decoder(engine, built, name)
            if is_certified_elsewhere(built, engine.device):
                state = StateFolder(settings.state_dir)
                certify_here(
                    *(engine, built, built.certificate, manifest, state),
                    lambda: measure_decoder(engine, folder, manifest, check),
                    driver=machine.driver,
                    limits=f"{engine.limits.max_tokens} tokens",
                )
            is_timed = bool(built.step_times) and engine.device == built.device
            times = time_steps(engine, check) if on_gpu and not is_timed else built.step_times
            if isinstance(engine, KernelKeeper):
                engine.keep_kernels()
            return _Ready(engine, times)
        except BaseException:
            engine.close()
            raise

    machine = settings.machine or machine_for([manifest])
    rebuild = Rebuild(manifest.model, folder.parent.parent)
    choice = choose(manifest.decoders, load, rebuild, machine, settings.required)
    limits = choice.loaded.engine.limits
    _log.info(
        "%s: the cache holds %d tokens in %d blocks; up to %d sequences of up to %d tokens",
        name,
        limits.num_blocks * limits.block_size,
        limits.num_blocks,
        limits.max_sequences,
        limits.max_tokens,
    )
    return LoadedDecoder(
        manifest=manifest,
        task=task,
        chosen=choice.built,
        engine=choice.loaded.engine,
        step_times=choice.loaded.step_times,
        vocabulary=vocabulary,
        template=template,
        structures=structures,
        passed_over=choice.passed_over,
    )


def _structures(file: Path, task: GenerateTask, name: str) -> StructureCompiler | None:
    """None for a tokenizer, or a model without an end, that cannot keep to a structure."""
    try:
        return StructureCompiler(file, task.vocab_size, task.eos_ids)
    except RepositoryError as error:
        _log.warning("%s serves without structured output: %s", name, error)
        return None


def _spec(
    folder: Path,
    manifest: Manifest,
    chosen: BuiltDecoder,
    task: GenerateTask,
    settings: DecoderSettings,
    *,
    on_gpu: bool,
) -> DecoderSpec:
    limits = manifest.limits
    name, weights = name_of(manifest), sum(file.size_bytes for file in chosen.files)
    return DecoderSpec(
        model=folder / chosen.model,
        precision=chosen.precision,
        cache_precision=chosen.cache_precision,
        layers=tuple(LayerGeometry(*astuple(layer)) for layer in task.layers),
        vocab_size=task.vocab_size,
        max_tokens=_lowered(limits.max_tokens, settings.max_tokens),
        max_step_tokens=_lowered(limits.max_batch_tokens, settings.max_step_tokens),
        max_sequences=_lowered(limits.max_batch, settings.max_running),
        # An engine on a GPU takes a share of that one's memory, not of the host's.
        cache_bytes=settings.cache_bytes or (0 if on_gpu else _default_cache_bytes(weights, name)),
        num_threads=settings.num_threads,
        attention=chosen.attention,
        cuda_binding=settings.cuda_binding,
        plan=traits_of(chosen.plan),
        kernels=kernels_of(chosen, settings.state_dir),
    )


def _lowered(limit: int, setting: int) -> int:
    return min(limit, setting) if setting else limit


def _default_cache_bytes(weights_bytes: int, name: str) -> int:
    """Half of what is left once the weights are loaded.

    Raises:
        PlanMismatchError: Nothing is.
    """
    free = available_bytes()
    if free is None:
        return _CACHE_WITHOUT_A_WORD
    if free <= weights_bytes:
        raise PlanMismatchError(
            f"{name} has {weights_bytes >> 20} MiB of weights, and {free >> 20} MiB of memory are "
            "free: free some, or build the model in a narrower precision"
        )
    return int(_SHARE_OF_FREE_MEMORY * (free - weights_bytes))
