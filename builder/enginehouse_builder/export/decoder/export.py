"""The export of a causal language model, from its folder to graph, tokenizer and what they mean."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export.graph import FILE_NAME
from enginehouse_builder.export.limits import decoder_max_tokens
from enginehouse_builder.export.loading import load_model, load_tokenizer
from enginehouse_builder.export.rope import (
    growing_limits,
    hold_rope,
    rope_lengths,
    switching_lengths,
)
from enginehouse_builder.export.tokens import check_tokenizer, check_vocabulary, save_tokenizer
from enginehouse_builder.manifest import GenerateTask, Tensor
from enginehouse_builder.resolve import Resolved
from enginehouse_builder.spec import BuildSpec

from .experts import num_products, register_sorted_experts
from .generation import end_ids, generation_defaults, save_generation_config
from .observe import Observed, observe
from .trace import input_tensors, output_tensors, write_decoder

__all__ = ["ExportedDecoder", "export_decoder"]

_UNCUT = 1 << 20  # prompts are never cut to a length


@dataclass(frozen=True, slots=True)
class ExportedDecoder:
    """What was written, beside the files themselves; typed_json takes it.

    Attributes:
        inputs: Of the graph: a step's tokens and places, then the caches.
        outputs: Logits, and the caches as they are then.
        generate: What serves it.
        max_tokens: Longest sequence, prompt and answer.
        rope_lengths: Lengths that the model's scaling of positions takes a text beyond.
        held_beyond: Of those, the longest that transformers' rope changes at and that sequences
            pass: they all have the rope of a text of `max_tokens`. 0 if there is none.
        rope_grows: Whether that differs from the rope of texts in between (dynamic).
        architecture: The model's class in transformers.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    generate: GenerateTask
    max_tokens: int
    rope_lengths: tuple[int, ...]
    held_beyond: int
    rope_grows: bool
    architecture: str


def export_decoder(
    resolved: Resolved, spec: BuildSpec, folder: Path, report: Callable[[str], None]
) -> ExportedDecoder:
    """Writes `model.onnx` (large weights in `model.onnx.data`) and `tokenizer/` into `folder`.

    Args:
        resolved: The original.
        spec: Of it, max_tokens and trust_remote_code are read.
        folder: Exists and is empty.
        report: Is told what goes on.

    Raises:
        UnsupportedModelError: The model cannot be converted, or not exactly.
        SpecError: More tokens are asked for than the model takes.
        ResolveError: Its weights or tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(resolved, spec)
    report("loading the weights")
    model = load_model(resolved, spec, "eager", register_sorted_experts())
    max_tokens = decoder_max_tokens(spec.max_tokens, model)
    hold_rope(model, max_tokens)
    architecture = type(model).__name__
    report(f"tracing {architecture}")
    try:
        observed = observe(model)
        _save_text(resolved, model, tokenizer, folder / "tokenizer")
        write_decoder(model, observed, max_tokens, folder / FILE_NAME)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{architecture} of {resolved.source.id} cannot be converted: {error}"
        ) from error
    held_beyond = _held_beyond(model, max_tokens)
    return ExportedDecoder(
        inputs=input_tensors(observed.layers),
        outputs=output_tensors(observed),
        generate=_task(resolved, model, tokenizer, observed),
        max_tokens=max_tokens,
        rope_lengths=rope_lengths(model.config.get_text_config()),
        held_beyond=held_beyond,
        rope_grows=bool(held_beyond and growing_limits(model.config.get_text_config())),
        architecture=architecture,
    )


def _held_beyond(model: PreTrainedModel, max_tokens: int) -> int:
    lengths = switching_lengths(model.config.get_text_config())
    return max([length for length in lengths if length < max_tokens], default=0)


def _save_text(
    resolved: Resolved, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    check_vocabulary(tokenizer, model)
    save_tokenizer(tokenizer, model.config, folder)
    save_generation_config(resolved, model, folder)
    check_tokenizer(folder, tokenizer, _UNCUT, pairs=False)


def _task(
    resolved: Resolved,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    observed: Observed,
) -> GenerateTask:
    return GenerateTask(
        vocab_size=observed.vocab_size,
        layers=observed.layers,
        eos_ids=end_ids(model, tokenizer, observed.vocab_size),
        has_chat_template=bool(tokenizer.chat_template),
        defaults=generation_defaults(resolved),
        is_mixture=num_products(model) > 0,
    )
