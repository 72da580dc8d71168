"""Makes a classifier's engines from its canonical graph: quantize, compile, certify, measure."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from enginehouse_builder.certify import Certified, Judged
from enginehouse_builder.engine_file import EngineFile
from enginehouse_builder.errors import BuildError, CertificateError
from enginehouse_builder.manifest import ClassifyTask
from enginehouse_builder.quantize import EightBits
from enginehouse_builder.sources import EncoderSource
from enginehouse_builder.stages import MODEL_FILE, Result
from enginehouse_builder.stages.compile import STAND_IN_BACKEND
from enginehouse_builder.stages.encoder import (
    Graph,
    Latencies,
    run_certify,
    run_measure,
    run_quantize,
)
from enginehouse_builder.targets import Target
from enginehouse_builder.version_files import ProvenEncoder
from enginehouse_server.engine.ahead import encoder_profiles
from enginehouse_server.engine.base import Shape

from .ahead import as_graph, compiled, in_types, order_for
from .building import Building, by_target
from .rounds import Verdicts, prove

__all__ = ["build_encoders", "graph_file"]


def build_encoders(building: Building, source: EncoderSource) -> tuple[ProvenEncoder, ...]:
    """The engine of every target, better ones first.

    Raises:
        BuildError: One cannot be made, or does not answer as the original.
    """
    proven = prove(
        building,
        "classify",
        partial(_graph, building, source),
        partial(_certified, building, source),
    )
    latencies = _measure(building, source, [graph for graph, _ in proven])
    return tuple(
        ProvenEncoder(
            target=graph.target,
            model=graph.model.file,
            plan=graph.model.plan,
            precision=graph.target.precision,
            certified=found.value,
            latency=times.value.by_shape if times else (),
        )
        for (graph, found), times in zip(proven, latencies, strict=True)
    )


def graph_file(building: Building, source: EncoderSource, model: Path, backend: str) -> EngineFile:
    """What an engine in fp32 is opened from."""
    return EngineFile(
        model=model,
        precision="fp32",
        inputs=source.input_names,
        pad_id=source.task.pad_id,
        max_batch_tokens=source.limits.max_batch_tokens,
        num_threads=building.place.num_threads,
        backend=backend,
    )


def _graph(building: Building, source: EncoderSource, target: Target) -> Graph:
    """The engine's file: the canonical graph, one in other numbers or types, or a plan."""
    model, key = source.folder / MODEL_FILE, source.key
    if target.precision in ("int8", "fp8"):
        model, key = _rounded(building, source, target.precision)
    graph = in_types(building, target, model, key)
    if target.is_plan:
        shapes = [Shape(batch, b.length) for b in source.buckets for batch in b.batches]
        order = order_for(building, target, encoder_profiles(source.input_names, shapes))
        made = compiled(building, target, graph, order, source.inputs)
    else:
        made = as_graph(building, target, graph)
    backend = STAND_IN_BACKEND if made.stand_in else target.backend
    file = graph_file(building, source, made.here, backend)
    return Graph(target, replace(file, precision=target.precision, plan=made.traits), made)


def _rounded(building: Building, source: EncoderSource, precision: EightBits) -> tuple[Path, str]:
    """The graph in levels of eight bits, and its key."""
    with building.stage("quantize") as stage:
        quantized = run_quantize(building.place, source, precision, stage.report)
        building.took("quantize", quantized)
        found = quantized.value
        stage.result = f"{found.num_int8} layers in {precision}"
        if found.num_fp32:
            stage.result += f", {found.num_fp32} that would lose too much in fp32"
        stage.result += quantized.note
    return quantized.folder / MODEL_FILE, quantized.key


def _certified(
    building: Building, source: EncoderSource, graphs: Sequence[Graph]
) -> Verdicts[Result[Certified]]:
    verdicts: list[Result[Certified] | BuildError] = []
    said = []
    with building.stage("certify") as stage:
        for graph in graphs:
            name = graph.target.name
            stage.report(f"running {name} on {len(source.rows)} samples, alone and in batches")
            words = graph.model.stand_in.words if graph.model.stand_in else ""
            buckets = source.buckets if graph.file.plan else ()
            judged = Judged(graph.target.precision, source.task, source.limits, words, buckets)
            try:
                found = run_certify(building.place, graph, judged, source.rows, source.reference)
            except BuildError as error:
                verdicts.append(error)
                is_other = isinstance(error, CertificateError)
                said.append((name, "not as the original" if is_other else "does not run"))
                continue
            verdicts.append(found)
            said.append((name, _verdict(found.value, source.task) + found.note))
        building.took("certify", *(v for v in verdicts if isinstance(v, Result)))
        stage.result = by_target(said)
    return verdicts


def _measure(
    building: Building, source: EncoderSource, graphs: Sequence[Graph]
) -> list[Result[Latencies] | None]:
    """Times what runs here; None for what does not."""
    place = building.place
    num_shapes = sum(len(bucket.batches) for bucket in source.buckets)
    latencies: list[Result[Latencies] | None] = []
    said = []
    with building.stage("measure") as stage:
        for graph in graphs:
            name = graph.target.name
            if graph.model.stand_in is not None:
                latencies.append(None)
                said.append((name, "does not run here"))
                continue
            stage.report(
                f"timing up to {num_shapes} shapes of {name} on {place.num_threads} threads"
            )
            found = run_measure(place, graph, source.buckets)
            latencies.append(found)
            times = found.value.by_shape
            one = times[0]
            said.append(
                (
                    name,
                    f"{len(times)} of {num_shapes} shapes; {one.median_ms:.2f} ms for "
                    f"{one.batch} x {one.length} tokens{found.note}",
                )
            )
        building.took("measure", *filter(None, latencies))
        stage.result = by_target(said)
    return latencies


def _verdict(certified: Certified, task: ClassifyTask) -> str:
    certificate = certified.certificate
    verdict = (
        f"{certificate.num_samples} samples: logits within {certificate.max_abs_error:.2g} "
        f"of the original's, which vary by {certificate.scale:.3g}"
    )
    if certificate.top1_agreement is not None and certified.clear_agreement is not None:
        verdict += f", {certificate.top1_agreement:.1%} decided alike"
        if certified.clear_agreement > certificate.top1_agreement:
            verdict += f" ({certified.clear_agreement:.1%} without near ties)"
    if task.padding == "equal_length":
        verdict += "; padding changes its answers, so only equal lengths will share a batch"
    return verdict
