"""The stages of a decoder's engines, each cached by what it depends on."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from enginehouse_builder.cache import code_digest, key_of, versions_of
from enginehouse_builder.certify import (
    CertifiedDecoder,
    ContinuationFile,
    JudgedDecoder,
    certify_decoder,
    tokens_at_once,
)
from enginehouse_builder.decoder_file import cache_bytes, opened_decoder, opened_stand_in
from enginehouse_builder.manifest import StepTime
from enginehouse_builder.measure_decoder import contexts_of, measure_decoder
from enginehouse_builder.quantize import QuantizedWeights, WeightPrecision, quantize_weights
from enginehouse_builder.sources import DecoderSource
from enginehouse_builder.targets import Target
from enginehouse_server.engine.decoder import CachePrecision, DecoderEngine, DecoderSpec

from .compile import STAND_IN_BACKEND, EngineModel
from .workplace import BUILDER, MODEL_FILE, RESULT_CODE, SERVER, Report, Result, Workplace

__all__ = [
    "DecoderGraph",
    "StepTimes",
    "run_certify",
    "run_conversion",
    "run_measure",
    "run_quantize",
]

_ENGINE_CODE = (f"{SERVER}.engine", f"{BUILDER}.decoder_file", *RESULT_CODE, __name__)
_CONVERSION_PROMPTS = 4  # beside the long one: the fp32 gate tells more of each


@dataclass(frozen=True, slots=True)
class DecoderGraph:
    """An engine of a decoder that can be opened.

    Attributes:
        target: What it is for.
        spec: Without room for a cache; its model is what is opened here, the engine's or what
            stands for it.
        model: What the engine reads.
        is_mixture: Whether tokens choose among experts.
    """

    target: Target
    spec: DecoderSpec
    model: EngineModel
    is_mixture: bool

    @property
    def backend(self) -> str:
        """What runs it here."""
        return STAND_IN_BACKEND if self.model.stand_in else self.target.backend

    @property
    def settings(self) -> dict[str, object]:
        """What decides the engine's results, for a key."""
        spec = self.spec
        return {
            "graph": self.model.key,
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


def run_quantize(
    place: Workplace,
    source: DecoderSource,
    precision: WeightPrecision,
    report: Report,
    *,
    tables: bool,
) -> Result[QuantizedWeights]:
    """Writes the graph with rounded weights, those that are looked up among them or not."""
    key = key_of(
        code_digest([f"{BUILDER}.quantize", *RESULT_CODE, __name__]),
        versions_of("onnx", "numpy"),
        source=source.key,
        precision=precision,
        tables=tables,
    )
    canonical = source.folder / MODEL_FILE
    return place.run(
        "quantize",
        key,
        QuantizedWeights,
        lambda folder: quantize_weights(
            canonical, folder / MODEL_FILE, precision, report, tables=tables
        ),
    )


def run_conversion(
    place: Workplace, canonical: DecoderGraph, reference: Result[ContinuationFile]
) -> Result[CertifiedDecoder]:
    """Proves the canonical graph by the fp32 gate, or fails, where no engine is in fp32.

    What rounding may change hides a window or a position that is wrong by one.
    """
    long, *short = reference.value.continuations
    some = short[:: max(1, len(short) // _CONVERSION_PROMPTS)][:_CONVERSION_PROMPTS]
    asked = replace(reference.value, continuations=(long, *some))
    return _certified(place, "conversion", canonical, replace(reference, value=asked))


def run_certify(
    place: Workplace, graph: DecoderGraph, reference: Result[ContinuationFile]
) -> Result[CertifiedDecoder]:
    """Certifies an engine, or fails."""
    return _certified(place, "certify", graph, reference)


def _certified(
    place: Workplace, stage: str, graph: DecoderGraph, reference: Result[ContinuationFile]
) -> Result[CertifiedDecoder]:
    key = key_of(
        code_digest([f"{BUILDER}.certify", *_ENGINE_CODE]),
        place.runtime_of(graph.backend),
        reference=reference.key,
        device=place.devices[graph.backend].name,
        **graph.settings,
    )
    lengths = [len(text.prompt) + len(text.tokens) for text in reference.value.continuations]
    spec = replace(graph.spec, cache_bytes=cache_bytes(graph.spec, tokens_at_once(lengths)))
    words = graph.model.stand_in.words if graph.model.stand_in else ""
    judged = JudgedDecoder(spec.precision, spec.cache_precision, graph.is_mixture, words)

    def make(_: Path) -> CertifiedDecoder:
        with _opened(graph, spec) as engine:
            return certify_decoder(engine, judged, reference.value)

    return place.run(stage, key, CertifiedDecoder, make)


def _opened(graph: DecoderGraph, spec: DecoderSpec) -> AbstractContextManager[DecoderEngine]:
    """What is run here: the engine itself, or what stands for it."""
    stand_in = graph.model.stand_in
    if stand_in is None:
        return opened_decoder(spec, graph.target.backend)
    # What is rounded to bf16 is kept, and computed, in fp32.
    kept: CachePrecision = "fp16" if spec.cache_precision == "fp16" else "fp32"
    return opened_stand_in(replace(spec, cache_precision=kept), is_lowered=stand_in.is_lowered)


def run_measure(place: Workplace, graph: DecoderGraph) -> Result[StepTimes]:
    """Times an engine."""
    key = key_of(
        code_digest([f"{BUILDER}.measure_decoder", *_ENGINE_CODE]),
        place.runtime_of(graph.backend),
        num_threads=graph.spec.num_threads,
        device=place.devices[graph.backend].name,
        **graph.settings,
    )

    def make(_: Path) -> StepTimes:
        contexts = contexts_of(graph.spec)
        most = cache_bytes(graph.spec, contexts.num_tokens)
        spec = replace(graph.spec, cache_bytes=most)
        with _opened(graph, spec) as engine:
            return StepTimes(measure_decoder(engine, contexts))

    return place.run("measure", key, StepTimes, make)
