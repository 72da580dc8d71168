"""A build: the chain of stages from a model to a published version.

    resolve ▶ export ▶ quantize ▶ certify ▶ measure ▶ publish

For OpenVINO on a CPU nothing is compiled ahead: it reads ONNX and compiles at load.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from enginehouse_server.engine.openvino.device import OpenVinoDevice, describe_device
from enginehouse_server.engine.threads import available_threads
from enginehouse_server.text import Encoding, Tokenizer

from .buckets import default_buckets
from .cache import Cache
from .certify import Certified, Judged
from .display import Display
from .engine_file import EngineFile
from .errors import SpecError
from .export import ExportedClassifier
from .manifest import Bucket, File, Limits, Manifest, StageTime
from .publish import Published, check_repository, publish
from .resolve import Resolved, resolve
from .samples import Samples, read_samples, samples_for
from .spec import BuildSpec
from .stages import (
    MODEL_FILE,
    Context,
    Graph,
    Latencies,
    Result,
    run_certify,
    run_export,
    run_measure,
    run_padding,
    run_quantize,
    run_reference,
)
from .version_files import Parts, items_of, manifest_of

__all__ = ["build", "check", "limits_for"]

_MIN_BATCH_TOKENS = 1024  # for a server with more threads; what one warms up is its own choice


def build(spec: BuildSpec, display: Display) -> Published:
    """Builds, proves and publishes one version of a model.

    Raises:
        BuildError: It cannot be done; nothing was published.
    """
    device = describe_device()
    check(spec, device)
    samples = read_samples(spec.samples)
    check_repository(spec.repository)
    with Cache(spec.cache, report=display.note) as cache:
        return _Build(spec, display, device, samples, cache).run()


def limits_for(spec: BuildSpec, max_tokens: int) -> Limits:
    """The limits of a build whose rows have at most `max_tokens`.

    Raises:
        SpecError: Not even one longest row would fit into a batch.
    """
    max_batch_tokens = spec.max_batch_tokens or max(max_tokens, _MIN_BATCH_TOKENS)
    if max_batch_tokens < max_tokens:
        raise SpecError(
            f"--max-batch-tokens is {max_batch_tokens}, but one row of --max-tokens "
            f"{max_tokens} must fit: raise the first or lower the second"
        )
    return Limits(max_tokens, spec.max_batch, max_batch_tokens)


def check(spec: BuildSpec, device: OpenVinoDevice) -> None:
    """Refuses what can never be built, before anything slow.

    Raises:
        SpecError: The settings cannot be meant, or not on this machine.
    """
    numbers = {
        "--max-tokens": spec.max_tokens,
        "--max-batch": spec.max_batch,
        "--max-batch-tokens": spec.max_batch_tokens,
        "--threads": spec.num_threads,
    }
    for option, number in numbers.items():
        if number is not None and number < 1:
            raise SpecError(f"{option} is {number}, but must be at least 1")
    if spec.max_tokens is not None:
        limits_for(spec, spec.max_tokens)
    if spec.precision == "bf16" and not device.has_bf16:
        raise SpecError(
            f"this processor ({device.name}) does not compute in bf16: use --precision fp32 or int8"
        )


class _Build:
    """A build under way: what it is made with, and how long its stages took."""

    def __init__(
        self,
        spec: BuildSpec,
        display: Display,
        device: OpenVinoDevice,
        samples: Samples,
        cache: Cache,
    ) -> None:
        self._spec = spec
        self._display = display
        self._device = device
        self._samples = samples
        self._cache = cache
        self._times: list[StageTime] = []

    def run(self) -> Published:
        """Runs all stages."""
        context = self._context(self._resolve())
        exported = self._export(context)
        value = exported.value
        limits = limits_for(self._spec, value.max_tokens)
        texts = samples_for(self._samples, accepts_pairs=value.classify.accepts_pairs)
        tokenizer = Tokenizer(exported.folder / "tokenizer" / "tokenizer.json", limits.max_tokens)
        rows = tokenizer.encode(texts, truncate=True)
        canonical = _canonical(exported, limits, context.num_threads)
        graph = self._graph(context, exported, canonical, rows)
        with self._display.stage("certify") as stage:
            reference = run_reference(context, texts, limits.max_tokens, stage.report)
            stage.report("comparing alone and padded answers")
            judged = Judged("fp32", value.classify, limits)
            # A user's own samples may all be of one length, or a single one.
            shipped = samples_for(read_samples(None), accepts_pairs=value.classify.accepts_pairs)
            more = tokenizer.encode(shipped, truncate=True)
            padding = run_padding(context, canonical, judged, [*rows, *more])
            task = replace(
                value.classify,
                padding="invariant" if padding.value.is_invariant else "equal_length",
            )
            stage.report(f"running the engine on {len(rows)} samples, alone and in batches")
            judged = Judged(self._spec.precision, task, limits)
            certified = run_certify(context, graph, judged, rows, reference)
            self._took("certify", reference, padding, certified)
            stage.result = _verdict(certified.value, judged) + certified.note
        latencies = self._measure(context, graph, default_buckets(limits, task))
        return self._publish(
            Parts(
                resolved=context.resolved,
                exported=exported,
                task=task,
                limits=limits,
                graph=graph,
                reference=reference,
                certified=certified.value,
                latency=latencies.value.by_shape,
            )
        )

    def _resolve(self) -> Resolved:
        started = time.perf_counter()
        with self._display.stage("resolve") as stage:
            resolved = resolve(self._spec, stage.report)
            revision = f" at {resolved.source.revision[:12]}" if resolved.source.revision else ""
            stage.result = (
                f"{resolved.source.id}{revision}, {resolved.source.architecture}, "
                f"to serve as {resolved.name!r}"
            )
        self._times.append(StageTime("resolve", time.perf_counter() - started))
        return resolved

    def _context(self, resolved: Resolved) -> Context:
        return Context(
            spec=self._spec,
            cache=self._cache,
            resolved=resolved,
            samples=self._samples,
            device=self._device,
            num_threads=self._spec.num_threads or available_threads(),
        )

    def _export(self, context: Context) -> Result[ExportedClassifier]:
        with self._display.stage("export") as stage:
            exported = run_export(context, stage.report)
            self._took("export", exported)
            labels = len(exported.value.classify.labels)
            stage.result = (
                f"{labels} labels, rows of up to {exported.value.max_tokens} tokens{exported.note}"
            )
        return exported

    def _graph(
        self,
        context: Context,
        exported: Result[ExportedClassifier],
        canonical: Graph,
        rows: Sequence[Encoding],
    ) -> Graph:
        """The graph of the precision asked for: the canonical one, or its int8 form."""
        file = replace(canonical.file, precision=self._spec.precision)
        if self._spec.precision != "int8":
            return Graph(file, canonical.key)
        with self._display.stage("quantize") as stage:
            quantized = run_quantize(context, exported, rows, stage.report)
            self._took("quantize", quantized)
            found = quantized.value
            stage.result = f"{found.num_int8} layers in int8"
            if found.num_fp32:
                stage.result += f", {found.num_fp32} that would lose too much in fp32"
            stage.result += quantized.note
        return Graph(replace(file, model=quantized.folder / MODEL_FILE), quantized.key)

    def _measure(
        self, context: Context, graph: Graph, buckets: Sequence[Bucket]
    ) -> Result[Latencies]:
        with self._display.stage("measure") as stage:
            num_shapes = sum(len(bucket.batches) for bucket in buckets)
            stage.report(f"timing up to {num_shapes} shapes on {context.num_threads} threads")
            latencies = run_measure(context, graph, buckets)
            self._took("measure", latencies)
            times = latencies.value.by_shape
            one = times[0]
            stage.result = (
                f"{len(times)} of {num_shapes} shapes; {one.median_ms:.2f} ms for "
                f"{one.batch} x {one.length} tokens{latencies.note}"
            )
        return latencies

    def _publish(self, parts: Parts) -> Published:
        with self._display.stage("publish") as stage:
            started = time.perf_counter()

            def manifest(version: int, files: Mapping[str, File]) -> Manifest:
                seconds = round(time.perf_counter() - started, 3)
                times = (*self._times, StageTime("publish", seconds))
                return manifest_of(parts, version, files, times)

            items = items_of(parts)
            published = publish(self._spec.repository, parts.resolved.name, items, manifest)
            stage.result = str(published.folder)
        return published

    def _took(self, stage: str, *results: Result[object]) -> None:
        self._times.append(StageTime(stage, round(sum(r.seconds for r in results), 3)))


def _canonical(exported: Result[ExportedClassifier], limits: Limits, num_threads: int) -> Graph:
    file = EngineFile(
        model=exported.folder / MODEL_FILE,
        precision="fp32",
        inputs=tuple(tensor.name for tensor in exported.value.inputs),
        pad_id=exported.value.pad_id,
        max_batch_tokens=limits.max_batch_tokens,
        num_threads=num_threads,
    )
    return Graph(file, exported.key)


def _verdict(certified: Certified, judged: Judged) -> str:
    certificate = certified.certificate
    verdict = (
        f"{certificate.num_samples} samples: logits within {certificate.max_abs_error:.2g} "
        f"of the original's, which vary by {certificate.scale:.3g}"
    )
    if certificate.top1_agreement is not None and certified.clear_agreement is not None:
        verdict += f", {certificate.top1_agreement:.1%} decided alike"
        if certified.clear_agreement > certificate.top1_agreement:
            verdict += f" ({certified.clear_agreement:.1%} without near ties)"
    if judged.task.padding == "equal_length":
        verdict += "; padding changes its answers, so only equal lengths will share a batch"
    return verdict
