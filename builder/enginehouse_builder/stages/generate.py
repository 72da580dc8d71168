"""The stages of a decoder, each cached by what it depends on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from enginehouse_builder.cache import code_digest, key_of, versions_of
from enginehouse_builder.certify import (
    MIN_PROMPTS,
    CertifiedDecoder,
    ContinuationFile,
    JudgedDecoder,
    Prompt,
    certify_decoder,
    tokens_at_once,
    write_continuations,
)
from enginehouse_builder.decoder_file import cache_bytes, opened_decoder
from enginehouse_builder.export import ExportedDecoder, export_decoder
from enginehouse_builder.manifest import StepTime
from enginehouse_builder.measure_decoder import contexts_of, measure_decoder
from enginehouse_builder.quantize import QuantizedWeights, WeightPrecision, quantize_weights
from enginehouse_builder.reference_decoder import DecoderReference
from enginehouse_server.engine.decoder import DecoderSpec

from .context import (
    BUILDER,
    MODEL_FILE,
    ORIGINAL_TOOLS,
    REFERENCE_FILE,
    RESULT_CODE,
    SERVER,
    Context,
    Report,
    Result,
)

__all__ = [
    "DecoderGraph",
    "StepTimes",
    "run_certify",
    "run_conversion",
    "run_export",
    "run_measure",
    "run_quantize",
    "run_reference",
]

_ENGINE_CODE = (f"{SERVER}.engine", f"{BUILDER}.decoder_file", *RESULT_CODE, __name__)
_REPORT_EVERY = 8  # prompts
_CONVERSION_PROMPTS = 4  # beside the long one: the fp32 gate tells more of each


@dataclass(frozen=True, slots=True)
class DecoderGraph:
    """What an engine is opened from, but for its cache.

    Attributes:
        backend: What runs it.
        spec: Without room for a cache.
        key: Of the stage that wrote the graph.
        is_mixture: Whether tokens choose among experts.
    """

    backend: str
    spec: DecoderSpec
    key: str
    is_mixture: bool

    @property
    def settings(self) -> dict[str, object]:
        """What decides the engine's results, for a key."""
        spec = self.spec
        return {
            "graph": self.key,
            "precision": spec.precision,
            "cache": spec.cache_precision,
            "attention": spec.attention,
            "limits": [spec.max_tokens, spec.max_step_tokens, spec.max_sequences],
        }

    @property
    def is_exact(self) -> bool:
        """Whether nothing is rounded, so that its own certificate proves the conversion."""
        return (self.spec.precision, self.spec.cache_precision) == ("fp32", "fp32")


@dataclass(frozen=True, slots=True)
class StepTimes:
    """An engine's measured times."""

    times: tuple[StepTime, ...]


def run_export(context: Context, report: Report) -> Result[ExportedDecoder]:
    """Writes the canonical graph and the tokenizer."""
    key = key_of(
        code_digest([f"{BUILDER}.export", *RESULT_CODE, __name__]),
        versions_of("onnx", "onnx-ir", "onnxscript", "numpy", "safetensors", *ORIGINAL_TOOLS),
        task=context.resolved.task,
        max_tokens=context.spec.max_tokens,
        **context.original,
    )
    return context.run(
        "export",
        key,
        ExportedDecoder,
        lambda folder: export_decoder(context.resolved, context.spec, folder, report),
    )


def run_quantize(
    context: Context, exported: Result[ExportedDecoder], precision: WeightPrecision, report: Report
) -> Result[QuantizedWeights]:
    """Writes the graph with rounded weights."""
    key = key_of(
        code_digest([f"{BUILDER}.quantize", *RESULT_CODE, __name__]),
        versions_of("onnx", "numpy"),
        source=exported.key,
        precision=precision,
    )
    source = exported.folder / MODEL_FILE
    return context.run(
        "quantize",
        key,
        QuantizedWeights,
        lambda folder: quantize_weights(source, folder / MODEL_FILE, precision, report),
    )


def run_reference(
    context: Context, exported: ExportedDecoder, prompts: Sequence[Prompt], report: Report
) -> Result[ContinuationFile]:
    """Asks the original, in fp32: the prompts that a certificate needs, then while time is left."""
    tools = versions_of(*ORIGINAL_TOOLS)
    key = key_of(
        code_digest(
            [
                f"{BUILDER}.reference_decoder",
                f"{BUILDER}.certify.continuations",
                f"{BUILDER}.export",
                *RESULT_CODE,
                __name__,
            ]
        ),
        tools,
        prompts=[list(prompt) for prompt in prompts],
        samples=context.samples.sha256,
        max_tokens=exported.max_tokens,
        minutes=context.spec.certify_minutes,
        **context.original,
    )

    def make(folder: Path) -> ContinuationFile:
        report("loading the original")
        held = exported.max_tokens if exported.held_beyond else None
        original = DecoderReference(context.resolved, context.spec, held)
        ends_at = time.monotonic() + context.spec.certify_minutes * 60
        found = []
        for i, prompt in enumerate(prompts):
            if i > MIN_PROMPTS and time.monotonic() > ends_at:
                break
            if i % _REPORT_EVERY == 0:
                report(f"asking the original prompt {i + 1} of {len(prompts)}")
            found.append(original.continued(prompt))
        name = f"transformers {tools['transformers']} fp32"
        if held:
            name += f" with the rope of texts of {held} tokens"
        file = ContinuationFile(name, context.samples.sha256, exported.max_tokens, tuple(found))
        write_continuations(file, folder / REFERENCE_FILE)
        return file

    return context.run("reference", key, ContinuationFile, make)


def run_conversion(
    context: Context,
    graph: DecoderGraph,
    exported: Result[ExportedDecoder],
    reference: Result[ContinuationFile],
) -> Result[CertifiedDecoder]:
    """Proves by the fp32 gate what the graph's engine was rounded from, or fails.

    What rounding may change hides a window or a position that is wrong by one.
    """
    spec = replace(
        graph.spec,
        model=exported.folder / MODEL_FILE,
        precision="fp32",
        cache_precision="fp32",
    )
    canonical = replace(graph, spec=spec, key=exported.key)
    long, *short = reference.value.continuations
    some = short[:: max(1, len(short) // _CONVERSION_PROMPTS)][:_CONVERSION_PROMPTS]
    asked = replace(reference.value, continuations=(long, *some))
    return _certified(context, "conversion", canonical, replace(reference, value=asked))


def run_certify(
    context: Context, graph: DecoderGraph, reference: Result[ContinuationFile]
) -> Result[CertifiedDecoder]:
    """Certifies an engine, or fails."""
    return _certified(context, "certify", graph, reference)


def _certified(
    context: Context, stage: str, graph: DecoderGraph, reference: Result[ContinuationFile]
) -> Result[CertifiedDecoder]:
    key = key_of(
        code_digest([f"{BUILDER}.certify", *_ENGINE_CODE]),
        context.runtime_of(graph.backend),
        reference=reference.key,
        device=context.devices[graph.backend].name,
        **graph.settings,
    )
    lengths = [len(text.prompt) + len(text.tokens) for text in reference.value.continuations]
    spec = replace(graph.spec, cache_bytes=cache_bytes(graph.spec, tokens_at_once(lengths)))
    judged = JudgedDecoder(spec.precision, spec.cache_precision, graph.is_mixture)

    def make(_: Path) -> CertifiedDecoder:
        with opened_decoder(spec, graph.backend) as engine:
            return certify_decoder(engine, judged, reference.value)

    return context.run(stage, key, CertifiedDecoder, make)


def run_measure(context: Context, graph: DecoderGraph) -> Result[StepTimes]:
    """Times an engine."""
    key = key_of(
        code_digest([f"{BUILDER}.measure_decoder", *_ENGINE_CODE]),
        context.runtime_of(graph.backend),
        num_threads=graph.spec.num_threads,
        device=context.devices[graph.backend].name,
        **graph.settings,
    )

    def make(_: Path) -> StepTimes:
        contexts = contexts_of(graph.spec)
        most = cache_bytes(graph.spec, contexts.num_tokens)
        spec = replace(graph.spec, cache_bytes=most)
        with opened_decoder(spec, graph.backend) as engine:
            return StepTimes(measure_decoder(engine, contexts))

    return context.run("measure", key, StepTimes, make)
