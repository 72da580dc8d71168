"""Makes a decoder's engines from its canonical graph: quantize, compile, certify, measure."""

from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

from enginehouse_builder.cache_precision import cache_precision_of
from enginehouse_builder.certify import CertifiedDecoder
from enginehouse_builder.display import StageDisplay
from enginehouse_builder.errors import BuildError, CertificateError
from enginehouse_builder.quantize import WeightPrecision
from enginehouse_builder.sources import DecoderSource
from enginehouse_builder.stages import MODEL_FILE, Result
from enginehouse_builder.stages.compile import EngineModel, GraphInTypes
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
from enginehouse_server.engine.tensorrt.plan import decoder_profiles

from .ahead import as_graph, compiled, in_types, order_for
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
            model=graph.model.file,
            plan=graph.model.plan,
            precision=graph.target.precision,
            cache_precision=graph.spec.cache_precision,
            attention=graph.spec.attention,
            certified=found.value,
            step_times=times.value.times if times else (),
        )
        for (graph, found), times in zip(proven, _measure(building, graphs), strict=True)
    )


class _Decoders:
    """Makes and proves the engines of one model; those of one precision read the same file."""

    def __init__(
        self, building: Building, source: DecoderSource, cache_precision: CachePrecision | None
    ) -> None:
        self._building = building
        self._source = source
        self._asked: CachePrecision | None = cache_precision
        self._layers = tuple(LayerGeometry(*astuple(layer)) for layer in source.task.layers)
        self._canonical = source.folder / MODEL_FILE, source.key
        self._files: dict[tuple[Precision, bool], tuple[Path, str]] = {}
        self._is_converted = False

    def make(self, target: Target) -> DecoderGraph:
        """The engine's file: the canonical graph, one in other numbers or types, or a plan."""
        attention: AttentionKind = "slots"
        if not target.is_plan:
            attention = attention_for(target.backend, self._layers)
        cache_precision = cache_precision_of(target, attention, self._asked)
        model, key = self._file(target)
        graph = in_types(self._building, target, model, key)
        if target.is_plan:
            made = self._plan(target, graph)
        else:
            made = as_graph(self._building, target, graph)
        limits = self._source.limits
        spec = DecoderSpec(
            model=made.here,
            precision=target.precision,
            cache_precision=cache_precision,
            layers=self._layers,
            vocab_size=self._source.task.vocab_size,
            max_tokens=limits.max_tokens,
            max_step_tokens=limits.max_batch_tokens,
            max_sequences=limits.max_batch,
            cache_bytes=0,
            num_threads=self._building.place.num_threads,
            attention=attention,
            plan=made.traits,
        )
        return DecoderGraph(target, spec, made, self._source.task.is_mixture)

    def certify(self, graphs: Sequence[DecoderGraph]) -> Verdicts[Result[CertifiedDecoder]]:
        """Each engine's certificate, or why it has none."""
        building, reference = self._building, self._source.reference
        verdicts: list[Result[CertifiedDecoder] | BuildError] = []
        said = []
        with building.stage("certify") as stage:
            proof = self._convert(stage, graphs)
            for graph in graphs:
                name = graph.target.name
                count = len(reference.value.continuations)
                stage.report(f"going on with {count} prompts at once on {name}")
                try:
                    found = run_certify(building.place, graph, reference)
                except BuildError as error:
                    verdicts.append(error)
                    is_other = isinstance(error, CertificateError)
                    words = "does not go on as the original" if is_other else "does not run"
                    said.append((name, words))
                    continue
                verdicts.append(found)
                said.append((name, _verdict(found.value) + found.note))
            building.took("certify", *(v for v in verdicts if isinstance(v, Result)))
            stage.result = proof + by_target(said)
        return verdicts

    def _plan(self, target: Target, graph: GraphInTypes) -> EngineModel:
        limits = self._source.limits
        profiles = decoder_profiles(
            self._layers, limits.max_tokens, limits.max_batch_tokens, limits.max_batch
        )
        order = order_for(self._building, target, profiles, self._layers, limits.max_tokens)
        return compiled(self._building, target, graph, order, self._source.inputs)

    def _convert(self, stage: StageDisplay, graphs: Sequence[DecoderGraph]) -> str:
        """Proves the conversion in fp32, once for all targets, unless one of them is the proof."""
        if self._is_converted:
            return ""
        self._is_converted = True
        if any(graph.is_exact for graph in graphs):
            return ""
        stage.report("proving the conversion in fp32")
        backend = self._building.place.proving_backend
        graph = self.make(Target(backend, "fp32"))
        exact = replace(graph, spec=replace(graph.spec, cache_precision="fp32"))
        found = run_conversion(self._building.place, exact, self._source.reference)
        self._building.took("certify", found)
        return (
            f"the conversion itself is exact ({found.value.certificate.num_prompts} prompts in "
            f"fp32{found.note}); "
        )

    def _file(self, target: Target) -> tuple[Path, str]:
        """The graph of a precision, the canonical one or one of rounded weights, and its key."""
        precision, tables = target.precision, not target.is_plan
        if precision not in ("int8", "int4"):
            return self._canonical
        if (precision, tables) not in self._files:
            self._files[precision, tables] = self._rounded(precision, tables=tables)
        return self._files[precision, tables]

    def _rounded(self, precision: WeightPrecision, *, tables: bool) -> tuple[Path, str]:
        building = self._building
        with building.stage("quantize") as stage:
            quantized = run_quantize(
                building.place, self._source, precision, stage.report, tables=tables
            )
            building.took("quantize", quantized)
            found = quantized.value
            counts = {"int4": found.num_int4, "int8": found.num_int8}
            stage.result = (
                ", ".join(f"{count} matrices in {kind}" for kind, count in counts.items() if count)
                + f": {found.source_bytes / 1e6:.1f} MB of weights are now "
                f"{found.target_bytes / 1e6:.1f} MB{quantized.note}"
            )
        return quantized.folder / MODEL_FILE, quantized.key


def _measure(building: Building, graphs: Sequence[DecoderGraph]) -> list[Result[StepTimes] | None]:
    """Times what runs here; None for what does not."""
    measured: list[Result[StepTimes] | None] = []
    said = []
    with building.stage("measure") as stage:
        for graph in graphs:
            name = graph.target.name
            if graph.model.stand_in is not None:
                measured.append(None)
                said.append((name, "does not run here"))
                continue
            stage.report(f"timing steps of {name} on {graph.spec.num_threads} threads")
            found = run_measure(building.place, graph)
            measured.append(found)
            times = found.value.times
            one = next((t for t in times if t.kind == "decode"), times[0])
            said.append(
                (
                    name,
                    f"{len(times)} steps; {one.median_ms:.2f} ms for a token of "
                    f"{one.num_sequences} sequence after {one.num_cached}{found.note}",
                )
            )
        building.took("measure", *filter(None, measured))
        stage.result = by_target(said)
    return measured


def _verdict(certified: CertifiedDecoder) -> str:
    found = certified.certificate
    verdict = (
        f"{found.num_prompts} prompts of up to {found.longest_prompt} tokens: "
        f"{found.token_agreement:.1%} of {found.num_tokens} greedy tokens are the original's"
    )
    if found.token_agreement < 1:
        verdict += (
            f", {found.top1_agreement:.1%} given its text ({certified.clear_agreement:.1%} without "
            f"near ties), {found.mean_kl:.2g} nats apart"
        )
    return (
        f"{verdict}; perplexity {found.perplexity:.4g} instead of {found.reference_perplexity:.4g}"
    )
