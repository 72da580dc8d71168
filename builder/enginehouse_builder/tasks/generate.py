"""Builds a decoder: exports the original, asks it, and makes the engines from the graph."""

from enginehouse_builder.certify import choose_prompts
from enginehouse_builder.errors import SpecError
from enginehouse_builder.export import ExportedDecoder
from enginehouse_builder.manifest import Limits
from enginehouse_builder.sources import DecoderSource
from enginehouse_builder.spec import BuildSpec
from enginehouse_builder.stages import Result
from enginehouse_builder.stages.context import Context
from enginehouse_builder.stages.generate import run_export, run_reference
from enginehouse_builder.version_files import (
    Origin,
    Parts,
    ProvenGenerator,
    graph_key,
    original_items,
)
from enginehouse_server.text import Tokenizer

from .building import Building
from .decoder import build_decoders
from .reach import within_reach

__all__ = ["build_decoder", "decoder_limits"]

_STEP_TOKENS = 512


def decoder_limits(spec: BuildSpec, max_tokens: int) -> Limits:
    """The limits of a build whose sequences have at most `max_tokens`.

    Raises:
        SpecError: Not even a token of each sequence would fit into a step.
    """
    step_tokens = spec.max_batch_tokens or max(spec.max_batch, _STEP_TOKENS)
    if step_tokens < spec.max_batch:
        raise SpecError(
            f"--max-batch-tokens is {step_tokens}, but a token of each of --max-batch "
            f"{spec.max_batch} sequences must fit: raise the first or lower the second"
        )
    return Limits(max_tokens, spec.max_batch, step_tokens)


def build_decoder(building: Building, context: Context) -> Parts:
    """Runs the stages of a decoder.

    Raises:
        BuildError: One failed.
    """
    exported, context = within_reach(building, context, _export)
    source = _source(building, context, exported)
    engines = build_decoders(building, source, context.spec.cache_precision)
    return Parts(
        model=context.resolved.name,
        origin=Origin(
            source=context.resolved.source,
            inputs=exported.value.inputs,
            outputs=exported.value.outputs,
            folder=exported.folder,
            items=original_items(exported.folder, source.reference.folder),
        ),
        limits=source.limits,
        proven=ProvenGenerator(source.task, engines),
    )


def _export(building: Building, context: Context) -> Result[ExportedDecoder]:
    with building.stage("export") as stage:
        exported = run_export(context, stage.report)
        building.took("export", exported)
        task = exported.value.generate
        stage.result = (
            f"{len(task.layers)} layers, {task.vocab_size} tokens in the vocabulary, sequences of "
            f"up to {exported.value.max_tokens}{_held(exported.value)}{exported.note}"
        )
    return exported


def _held(exported: ExportedDecoder) -> str:
    """Where the answers are not transformers' own for texts of every length, in words."""
    if not exported.held_beyond:
        return ""
    if exported.rope_grows:
        return (
            f", with the rope of texts of {exported.max_tokens} tokens for shorter ones too "
            f"(transformers has another for each length beyond {exported.held_beyond}; "
            f"--max-tokens {exported.held_beyond} has that of texts up to it)"
        )
    return (
        f", with the rope of texts beyond {exported.held_beyond} for shorter ones too (transformers"
        f" changes it there; --max-tokens {exported.held_beyond} has the other for all)"
    )


def _source(
    building: Building, context: Context, exported: Result[ExportedDecoder]
) -> DecoderSource:
    """Asks the original how it goes on."""
    value = exported.value
    limits = decoder_limits(context.spec, value.max_tokens)
    texts = [" ".join(filter(None, sample)) for sample in context.samples.inputs]
    windows = [layer.window for layer in value.generate.layers]
    tokenizer = Tokenizer(exported.folder / "tokenizer" / "tokenizer.json", limits.max_tokens)
    with building.stage("reference") as stage:
        prompts = choose_prompts(
            texts, tokenizer, limits.max_tokens, [*windows, *value.rope_lengths]
        )
        reference = run_reference(context, value, prompts, stage.report)
        building.took("reference", reference)
        count = len(reference.value.continuations)
        stage.result = f"{count} prompts continued by {reference.value.reference}{reference.note}"
    return DecoderSource(
        folder=exported.folder,
        key=graph_key(exported.folder),
        inputs=value.inputs,
        task=value.generate,
        limits=limits,
        reference=reference,
    )
