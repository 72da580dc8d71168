"""From a version's folder to what answers its requests, as the configuration says."""

from collections.abc import Callable
from pathlib import Path

from .config import ServerConfig
from .engine.machine import Machine
from .engine.threads import available_threads
from .repository import (
    DecoderSettings,
    LoadedClassifier,
    LoadedDecoder,
    LoadSettings,
    load_classifier,
    load_decoder,
    name_of,
    read_version,
)
from .scheduler import (
    DeliverTokens,
    EncoderBatcher,
    EncoderScheduler,
    GeneratePolicy,
    GenerateScheduler,
    Policy,
    StepFigures,
    StepPace,
)
from .scheduler.batcher import Batch
from .scheduler.encoder import Deliver, OnLost
from .tasks import Classifier, Generator, GeneratorTraits, PromptReader, SamplingDefaults
from .tasks.classify import ClassifierTraits
from .tasks.defaults import usable_defaults
from .tasks.scores import default_activation
from .telemetry import DecoderMetrics, Metrics, StepCounts

__all__ = ["create_runner", "load_version"]


def load_version(
    folder: Path, config: ServerConfig, machine: Machine, check: Callable[[], None]
) -> LoadedClassifier | LoadedDecoder:
    """Loads a version of whatever task; blocking.

    Args:
        folder: Of the version.
        config: Says how.
        machine: This one.
        check: Called every now and then; what it raises ends the loading.

    Raises:
        UnloadableError: It cannot be served.
    """
    num_threads = config.engine.threads or available_threads()
    required = "" if config.engine.require == "any" else config.engine.require
    if read_version(folder).task == "generate":
        generate = config.generate
        return load_decoder(
            folder,
            DecoderSettings(
                num_threads=num_threads,
                cache_bytes=int(generate.cache_memory * 2**30),
                max_tokens=generate.max_sequence_tokens,
                max_running=generate.max_running,
                max_step_tokens=generate.max_step_tokens,
                required=required,
                machine=machine,
                cuda_binding=config.engine.cuda_binding,
                state_dir=config.state_folder,
            ),
            check,
        )
    return load_classifier(
        folder,
        LoadSettings(
            num_threads=num_threads,
            num_lanes=config.engine.lanes,
            max_tokens=config.batching.max_tokens,
            max_batch=config.batching.max_batch,
            max_batch_tokens=config.batching.max_batch_tokens,
            required=required,
            machine=machine,
            cuda_binding=config.engine.cuda_binding,
            state_dir=config.state_folder,
        ),
        check,
    )


def create_runner(
    loaded: LoadedClassifier | LoadedDecoder,
    config: ServerConfig,
    metrics: Metrics,
    on_lost: OnLost,
) -> Classifier | Generator:
    """What answers a loaded version's requests; to be called on the event loop.

    Args:
        loaded: The version.
        config: Says how.
        metrics: Where its figures go.
        on_lost: Called on any thread when its engine's device is lost.
    """
    if isinstance(loaded, LoadedDecoder):
        return _generator(loaded, config, metrics, on_lost)
    return _classifier(loaded, config, metrics, on_lost)


def _classifier(
    loaded: LoadedClassifier, config: ServerConfig, metrics: Metrics, on_lost: OnLost
) -> Classifier:
    manifest, task, batching = loaded.manifest, loaded.task, config.batching
    telemetry = metrics.of_classifier(manifest.model, manifest.version)
    traits = ClassifierTraits(
        labels=task.labels,
        activation=default_activation(task.problem),
        accepts_pairs=task.accepts_pairs,
        max_tokens=loaded.max_tokens,
        max_inputs=batching.max_inputs,
        max_queue=batching.max_queue,
    )
    policy = Policy(
        max_queue=batching.max_queue,
        max_queue_s=batching.max_queue_s,
        window=batching.batch_window,
        equal_lengths=task.padding == "equal_length",
    )

    def create_scheduler(deliver: Deliver) -> EncoderScheduler:
        def on_batch(batch: Batch, seconds: float) -> None:
            tokens = batch.shape.num_tokens
            telemetry.batch_ended(len(batch.members), batch.num_tokens, tokens)

        batcher = EncoderBatcher(loaded.grid, loaded.latency, policy)
        return EncoderScheduler(batcher, loaded.engine.lanes, deliver, on_batch, on_lost)

    return Classifier(traits, loaded.tokenizer, create_scheduler, telemetry)


def _generator(
    loaded: LoadedDecoder, config: ServerConfig, metrics: Metrics, on_lost: OnLost
) -> Generator:
    manifest, settings = loaded.manifest, config.generate
    telemetry = metrics.of_decoder(manifest.model, manifest.version)
    policy = GeneratePolicy(
        max_queue=settings.max_waiting,
        max_queue_s=settings.max_wait_s,
        reuses_prefixes=settings.prefix_cache == "on",
    )

    def create_scheduler(deliver: DeliverTokens) -> GenerateScheduler:
        def on_step(figures: StepFigures) -> None:
            telemetry.step_ended(_step_counts(figures))

        engine, pace = loaded.engine, _pace(loaded, settings.inter_token_budget_ms / 1e3)
        scheduler = GenerateScheduler(
            engine, loaded.structures, policy, pace, deliver, on_step, on_lost
        )
        _watch(telemetry, scheduler, engine.limits.num_blocks)
        return scheduler

    traits = _generator_traits(loaded, config)
    reader = PromptReader(loaded.vocabulary, loaded.template, traits)
    return Generator(traits, reader, loaded.structures, create_scheduler, telemetry)


def _pace(loaded: LoadedDecoder, budget_s: float) -> StepPace:
    """What was measured, for sequences that have few tokens yet."""
    steps = loaded.step_times
    decodes: dict[int, float] = {}
    for step in (s for s in steps if s.kind == "decode"):
        decodes.setdefault(step.num_sequences, step.median_ms / 1e3)
    prefills = [s for s in steps if s.kind == "prefill" and not s.num_cached]
    if len(prefills) < 2:
        return StepPace(decodes, None, budget_s)
    # A step reads the weights once, however many tokens it has.
    short, *_, long = prefills
    token_ms = (long.median_ms - short.median_ms) / (long.num_tokens - short.num_tokens)
    return StepPace(decodes, token_ms / 1e3 if token_ms > 0 else None, budget_s)


def _generator_traits(loaded: LoadedDecoder, config: ServerConfig) -> GeneratorTraits:
    task, limits = loaded.task, loaded.engine.limits
    found = task.defaults
    # As transformers has it: what does not sample takes the most likely token.
    temperature = (1.0 if found.temperature is None else found.temperature) * bool(found.do_sample)
    given = SamplingDefaults(
        temperature=temperature,
        top_k=found.top_k or 0,
        top_p=1.0 if found.top_p is None else found.top_p,
        min_p=found.min_p or 0.0,
        repetition_penalty=found.repetition_penalty or 1.0,
    )
    cache_tokens = limits.num_blocks * limits.block_size
    max_tokens = min(limits.max_tokens, cache_tokens)
    return GeneratorTraits(
        vocab_size=task.vocab_size,
        eos_ids=frozenset(task.eos_ids),
        accepts_chat=loaded.template is not None,
        max_tokens=max_tokens,
        max_characters=max_tokens * loaded.vocabulary.longest_token,
        max_waiting=config.generate.max_waiting,
        max_sequences=config.generate.max_num_sequences,
        max_running=limits.max_sequences,
        max_step_tokens=limits.max_step_tokens,
        cache_tokens=cache_tokens,
        defaults=usable_defaults(given, name_of(loaded.manifest)),
    )


def _watch(telemetry: DecoderMetrics, scheduler: GenerateScheduler, num_blocks: int) -> None:
    telemetry.watch(
        sequences={
            "waiting": lambda: scheduler.num_waiting,
            "running": lambda: scheduler.num_running,
        },
        blocks={
            "used": lambda: scheduler.num_blocks_used,
            "free": lambda: num_blocks - scheduler.num_blocks_used,
        },
    )


def _step_counts(figures: StepFigures) -> StepCounts:
    return StepCounts(
        seconds=figures.seconds,
        prompt_tokens=figures.num_prompt_tokens,
        decode_tokens=figures.num_decode_tokens,
        reused_tokens=figures.num_reused_tokens,
        preemptions=figures.num_preemptions,
        wasted_tokens={
            "abandoned": figures.num_wasted_tokens,
            "preempted": figures.num_repeated_tokens,
        },
    )
