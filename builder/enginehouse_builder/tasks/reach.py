"""Lowers a decoder's limit where no certificate could reach beyond what changes below it."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from typing import NamedTuple

from enginehouse_builder.certify import (
    MIN_PROMPTS,
    Budget,
    OriginalPace,
    Price,
    Reach,
    long_prompt_tokens,
    new_tokens,
    reach_of,
    tokens_at_once,
    usual_prompt_tokens,
)
from enginehouse_builder.decoder_file import LEAST_SLOTS, cache_bytes
from enginehouse_builder.export import ExportedDecoder
from enginehouse_builder.memory import beside_weights, check_cache, prompt_bytes
from enginehouse_builder.stages import MODEL_FILE, Result
from enginehouse_builder.stages.context import Context
from enginehouse_builder.stages.reach import run_pace
from enginehouse_builder.weights import num_weights
from enginehouse_server.engine.create import attention_for
from enginehouse_server.engine.decoder import DecoderSpec, LayerGeometry

from .building import Building

__all__ = ["Reached", "within_reach"]

_ALWAYS_S = 60.0  # the long prompt may take it, however few minutes are given

Export = Callable[[Building, Context], Result[ExportedDecoder]]


class Reached(NamedTuple):
    """An export, and the context whose limit it has."""

    exported: Result[ExportedDecoder]
    context: Context


def within_reach(building: Building, context: Context, export: Export) -> Reached:
    """Exports; once more with a lower limit where the long prompt is too dear for the first.

    What is said of a lower limit is in the export's `generate.lowered`.

    Raises:
        SpecError: Not even the shorter prompts' keys and values fit into the memory.
        BuildError: A stage failed.
    """
    exported = export(building, context)
    reach = _reach(building, context, exported)
    if reach.reason:
        context = replace(context, spec=replace(context.spec, max_tokens=reach.max_tokens))
        exported = export(building, context)
        generate = replace(exported.value.generate, lowered=reach.reason)
        exported = replace(exported, value=replace(exported.value, generate=generate))
    resolved = context.resolved
    needed = _cache(context, exported, exported.value.max_tokens, _lengths(exported.value))
    check_cache(num_weights(resolved.folder, resolved.source.id), needed, resolved.source.id)
    return Reached(exported, context)


def _lengths(exported: ExportedDecoder) -> Sequence[int]:
    return (*(layer.window for layer in exported.generate.layers), *exported.rope_lengths)


def _reach(building: Building, context: Context, exported: Result[ExportedDecoder]) -> Reach:
    value = exported.value
    lengths = _lengths(value)
    longest = long_prompt_tokens(value.max_tokens, lengths)
    if longest <= long_prompt_tokens(value.max_tokens, ()):
        return Reach(value.max_tokens, "")
    seconds = max(_ALWAYS_S, context.spec.certify_minutes * 60)
    resolved = context.resolved
    left = beside_weights(num_weights(resolved.folder, resolved.source.id))
    with building.stage("reach") as stage:
        paced = run_pace(context, longest, seconds, stage.report)
        building.took("reach", paced)

        def price(num_prompt: int, max_tokens: int) -> Price:
            return _price(context, exported, paced.value, num_prompt, max_tokens)

        found = reach_of(value.max_tokens, lengths, price, Budget(seconds, left))
        about = paced.value.seconds(longest, new_tokens(value.max_tokens))
        stage.result = (
            f"sequences are limited to {found.reason}"
            if found.reason
            else f"a prompt of {longest} tokens takes the original about {about:.0f} s"
        ) + paced.note
    return found


def _price(
    context: Context,
    exported: Result[ExportedDecoder],
    pace: OriginalPace,
    num_prompt: int,
    max_tokens: int,
) -> Price:
    """Of the original, and of the engines' cache, which comes when the original has gone."""
    num_new = new_tokens(max_tokens)
    task = exported.value.generate
    original = prompt_bytes(task, num_prompt + num_new, has_cache=pace.has_cache)
    cache = _cache(context, exported, max_tokens, _lengths(exported.value))
    return Price(pace.seconds(num_prompt, num_new), max(original, cache))


def _cache(
    context: Context, exported: Result[ExportedDecoder], max_tokens: int, lengths: Sequence[int]
) -> int:
    """Bytes of the largest cache that a certificate of one of the targets takes."""
    layers = tuple(LayerGeometry(*astuple(layer)) for layer in exported.value.generate.layers)
    num_new = new_tokens(max_tokens)
    usual = [usual_prompt_tokens(max_tokens) + num_new] * MIN_PROMPTS
    num_tokens = tokens_at_once([long_prompt_tokens(max_tokens, lengths) + num_new, *usual])
    found = []
    for target in context.place.targets:
        spec = DecoderSpec(
            model=exported.folder / MODEL_FILE,
            precision="fp32",
            cache_precision="fp32",
            layers=layers,
            vocab_size=exported.value.generate.vocab_size,
            max_tokens=max_tokens,
            max_step_tokens=1,
            max_sequences=min(LEAST_SLOTS, context.spec.max_batch),  # of slots, more where they fit
            cache_bytes=0,
            num_threads=1,
            attention="slots" if target.is_plan else attention_for(target.backend, layers),
        )
        found.append(cache_bytes(spec, num_tokens))
    return max(found)
