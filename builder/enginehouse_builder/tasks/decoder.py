"""Makes a decoder's engines from its canonical graph: quantize, compile, certify, measure."""

from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path

from enginehouse_builder.certify import CertifiedDecoder
from enginehouse_builder.display import StageDisplay
from enginehouse_builder.errors import CertificateError
from enginehouse_builder.precisions import arithmetic_of, decoder_cache_precision
from enginehouse_builder.sources import DecoderSource
from enginehouse_builder.stages import MODEL_FILE, Result
from enginehouse_builder.stages.decoder import (
    DecoderGraph,
    StepTimes,
    run_certify,
    run_conversion,
    run_measure,
    run_quantize,
)
from enginehouse_builder.targets import Target
from enginehouse_builder.version_files import ProvenDecoder
from enginehouse_server.engine.base import Precision
from enginehouse_server.engine.create import attention_for
from enginehouse_server.engine.decoder import (
    AttentionKind,
    CachePrecision,
    DecoderSpec,
    LayerGeometry,
)

from .ahead import compiled, typed
from .building import Building, by_target
from .rounds import Verdicts, prove

__all__ = ["build_decoders"]


def build_decoders(
    building: Building, source: DecoderSource, cache_precision: CachePrecision | None
) -> tuple[ProvenDecoder, ...]:
    """The engine of every target, better ones first.

    Args:
        building: The build.
        source: What they are made from.
        cache_precision: What is asked for; None is each engine's own.

    Raises:
        BuildError: One cannot be made, or does not go on as the original.
    """
    makers = _Decoders(building, source, cache_precision)
    proven = prove(building, "generate", makers.make, makers.certify)
    graphs = [graph for graph, _ in proven]
    return tuple(
        ProvenDecoder(
            target=graph.target,
            model=graph.model,
            plan=graph.plan,
            precision=graph.target.precision,
            cache_precision=graph.spec.cache_precision,
            attention=graph.spec.attention,
            certified=found.value,
            step_times=times.value.times if times else (),
        )
        for (graph, found), times in zip(proven, _measure(building, graphs), strict=True)
    )
