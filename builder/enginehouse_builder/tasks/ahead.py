"""Makes plans, whatever the task: the graph in its types, the plan, and what stands for it here."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from enginehouse_builder.cache import sealed_hashes
from enginehouse_builder.manifest import Plan, PlanProfile, PlanTensor, Tensor
from enginehouse_builder.precisions import arithmetic_of
from enginehouse_builder.stages import MODEL_FILE, PLAN_FILE
from enginehouse_builder.stages.compile import (
    Compiled,
    EngineModel,
    GraphInTypes,
    StandIn,
    run_compile,
    run_stand_in,
    run_types,
)
from enginehouse_builder.targets import Target
from enginehouse_server.engine.ahead import PlanOrder
from enginehouse_server.engine.decoder import LayerGeometry
from enginehouse_server.engine.graph import HalfPrecision
from enginehouse_server.engine.tensorrt import Flavour, Profile
from enginehouse_server.engine.tensorrt.plan import slot_capacity

from .building import Building

__all__ = ["as_graph", "compiled", "in_types", "order_for"]

_NUMBER_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def in_types(building: Building, target: Target, model: Path, key: str) -> GraphInTypes:
    """The graph in the types that the target computes in, where those are the graph's."""
    arithmetic = arithmetic_of(target.precision, is_typed=target.is_plan)
    if target.backend == "openvino" or arithmetic not in ("fp16", "bf16"):
        return GraphInTypes(model, key, "fp32")
    half: HalfPrecision = "fp16" if arithmetic == "fp16" else "bf16"
    with building.stage("compile") as stage:
        written = run_types(building.place, model, key, half, stage.report)
        building.took("compile", written)
        stage.result = f"the graph in {half}{written.note}"
    return GraphInTypes(written.folder / MODEL_FILE, written.key, half)


def as_graph(building: Building, target: Target, graph: GraphInTypes) -> EngineModel:
    """A graph that is served as it is: in half precision that takes a GPU."""
    if graph.arithmetic == "fp32" or building.place.host.has_cuda_provider:
        return EngineModel(graph.model, graph.key)
    words = f" on a processor in place of its CUDA provider: the graph in {graph.arithmetic}"
    stand_in = StandIn(graph.model, words, is_lowered=False)
    return EngineModel(graph.model, graph.key, stand_in=stand_in)


def order_for(
    building: Building,
    target: Target,
    profiles: tuple[Profile, ...],
    layers: tuple[LayerGeometry, ...] = (),
    max_tokens: int = 0,
) -> PlanOrder:
    """The plan that a target wants."""
    place = building.place
    return PlanOrder(
        flavour=cast(Flavour, target.backend),
        compute_capabilities=target.capabilities,
        precision=target.precision,
        profiles=profiles,
        layers=layers,
        max_tokens=max_tokens,
        optimization_level=place.compiling.optimization_level,
        workspace_bytes=place.compiling.workspace_bytes,
        timing_cache=place.cache.file("timing", f"{target.folder}.cache"),
    )


def compiled(
    building: Building,
    target: Target,
    graph: GraphInTypes,
    order: PlanOrder,
    inputs: Sequence[Tensor],
) -> EngineModel:
    """The plan of a target, and where it does not run here what is certified in its place.

    Args:
        building: The build.
        target: What it is for.
        graph: The graph in its types.
        order: What plan is wanted.
        inputs: Of the canonical graph.

    Raises:
        CompileError: There is none.
    """
    place = building.place
    with building.stage("compile") as stage:
        made = run_compile(place, target, graph, order, stage.report)
        building.took("compile", made)
        plan = _plan(order, made.value, graph, inputs)
        file = made.folder / PLAN_FILE
        stage.result = f"{target.name} {target.precision}: {_said(made.value, plan)}{made.note}"
        if place.runs(plan):
            # Compiled again the same order gives another plan: kernels are chosen by their times.
            key = f"{made.key} {sealed_hashes(made.folder)[file]}"
            return EngineModel(file, key, replace(plan, certified="runtime"))
        stand_in = run_stand_in(place, graph, order, stage.report)
        building.took("compile", stand_in)
    words = f" in place of {plan.flavour} {plan.version}: the lowered graph {_how(graph)}"
    model = StandIn(stand_in.folder / MODEL_FILE, words, is_lowered=True)
    return EngineModel(file, stand_in.key, plan, model)


def _plan(order: PlanOrder, found: Compiled, graph: GraphInTypes, inputs: Sequence[Tensor]) -> Plan:
    dtypes = {tensor.name: tensor.dtype for tensor in inputs}
    caches = [name for name in dtypes if name.startswith("past_")]
    dtypes |= dict.fromkeys(caches, _DTYPES[graph.arithmetic])
    profiles = tuple(
        PlanProfile(
            profile.role,
            tuple(PlanTensor(r.name, dtypes[r.name], r.min, r.opt, r.max) for r in profile.inputs),
        )
        for profile in order.profiles
    )
    slot = sum(math.prod(r.min[1:]) for r in order.profiles[0].inputs if r.name in caches)
    slot_bytes = slot * _NUMBER_BYTES[graph.arithmetic]
    return Plan(
        flavour=order.flavour,
        version=found.version,
        compute_capabilities=found.compute_capabilities,
        profiles=profiles,
        slot_tokens=slot_capacity(order.max_tokens),
        device_bytes=found.num_bytes + found.activation_bytes + slot_bytes,
        certified="lowered",
    )


def _said(found: Compiled, plan: Plan) -> str:
    said = (
        f"{plan.flavour} {plan.version}, {found.num_bytes / 1e6:.1f} MB, and "
        f"{found.activation_bytes / 1e6:.1f} MB to work in"
    )
    if plan.compute_capabilities:
        said += f" for {', '.join(plan.compute_capabilities)}"
    if found.num_caches:
        said += f", {found.num_attentions} fused attentions, {found.num_caches} caches in place"
    return "; ".join((said, *found.notes))


def _how(graph: GraphInTypes) -> str:
    """Exactly what is computed, for the certificate."""
    if graph.arithmetic == "bf16":
        return "with weights and stored activations rounded to bf16, computed in fp32"
    return f"in the plan's types ({graph.arithmetic})"
