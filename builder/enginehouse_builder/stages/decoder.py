"""The stages of a decoder's engines, each cached by what it depends on."""

from dataclasses import dataclass, replace
from pathlib import Path

from enginehouse_builder.cache import code_digest, key_of, versions_of
from enginehouse_builder.certify import (
    CertifiedDecoder,
    ContinuationFile,
    JudgedDecoder,
    certify_decoder,
)
from enginehouse_builder.decoder_file import cache_bytes, opened_decoder
from enginehouse_builder.manifest import StepTime
from enginehouse_builder.measure_decoder import contexts_of, measure_decoder
from enginehouse_builder.quantize import QuantizedWeights, WeightPrecision, quantize_weights
from enginehouse_server.engine.decoder import DecoderSpec

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
_CERTIFIED_AT_ONCE = 16  # sequences that have cache at the same time, twins' donors among them
_BLOCK = 32  # tokens: each sequence's last block may be nearly empty
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


def run_quantize(
    place: Workplace, exported: Result[ExportedDecoder], precision: WeightPrecision, report: Report
) -> Result[QuantizedWeights]:
    """Writes the graph with rounded weights."""
    key = key_of(
        code_digest([f"{BUILDER}.quantize", *RESULT_CODE, __name__]),
        versions_of("onnx", "numpy"),
        source=exported.key,
        precision=precision,
    )
    source = exported.folder / MODEL_FILE
    return place.run(
        "quantize",
        key,
        QuantizedWeights,
        lambda folder: quantize_weights(source, folder / MODEL_FILE, precision, report),
    )


def run_conversion(
    place: Workplace,
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
    place: Workplace, graph: DecoderGraph, reference: Result[ContinuationFile]
) -> Result[CertifiedDecoder]:
    """Certifies an engine, or fails."""
    return _certified(context, "certify", graph, reference)


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
    spec = replace(
        graph.spec,
        cache_bytes=cache_bytes(graph.spec, _cached_tokens(reference.value)),
    )
    judged = JudgedDecoder(spec.precision, spec.cache_precision, graph.is_mixture)

    def make(_: Path) -> CertifiedDecoder:
        with opened_decoder(spec, graph.backend) as engine:
            return certify_decoder(engine, judged, reference.value)

    return place.run(stage, key, CertifiedDecoder, make)


def _cached_tokens(reference: ContinuationFile) -> int:
    """Room for as many of the longest sequences as have cache at the same time."""
    lengths = [len(text.prompt) + len(text.tokens) for text in reference.continuations]
    return sum(length + _BLOCK for length in sorted(lengths)[-_CERTIFIED_AT_ONCE:])


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
        with opened_decoder(spec, graph.backend) as engine:
            return StepTimes(measure_decoder(engine, contexts))

    return place.run("measure", key, StepTimes, make)
