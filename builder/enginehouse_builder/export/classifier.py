"""A sequence classifier to the canonical ONNX graph, its tokenizer and what its logits mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor as TorchTensor
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.manifest import ClassifyTask, Tensor
from enginehouse_builder.resolve import Resolved
from enginehouse_builder.spec import BuildSpec

from .distances import tabled_distances
from .experts import register_dense_experts
from .graph import FILE_NAME, reason_of, write_graph
from .limits import max_tokens_of
from .loading import inputs_of, load_model, load_tokenizer, pad_id, quiet
from .pooling import module_of
from .tokens import accepts_pairs, check_tokenizer, check_vocabulary, save_tokenizer

__all__ = ["ExportedClassifier", "export_classifier"]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # what an engine can be given
_PROBLEMS: dict[str, Literal["single_label", "multi_label", "regression"]] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


@dataclass(frozen=True, slots=True)
class ExportedClassifier:
    """What was written, beside the files themselves; typed_json takes it.

    Attributes:
        inputs: Of the graph, named as the tokenizer names them.
        outputs: The logits.
        classify: What they mean; padding is said to be invariant until it is found not to be.
        max_tokens: Longest row.
        pad_id: Token that fills a row up.
        architecture: The model's class in transformers.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    classify: ClassifyTask
    max_tokens: int
    pad_id: int
    architecture: str


def export_classifier(
    resolved: Resolved, spec: BuildSpec, folder: Path, report: Callable[[str], None]
) -> ExportedClassifier:
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
    model = _load_for_export(resolved, spec)
    check_vocabulary(tokenizer, model)
    taken = inputs_of(model, tokenizer)
    names = tuple(name for name in _INPUTS if name in taken)
    max_tokens = max_tokens_of(spec.max_tokens, model, tokenizer)
    task = _task(model, tokenizer, names)
    exported = ExportedClassifier(
        inputs=tuple(Tensor(name, "int64", ("batch", "length")) for name in names),
        outputs=(Tensor("logits", "float32", ("batch", len(task.labels))),),
        classify=task,
        max_tokens=max_tokens,
        pad_id=pad_id(model, tokenizer),
        architecture=type(model).__name__,
    )
    text = folder / "tokenizer"
    save_tokenizer(tokenizer, model.config, text)
    check_tokenizer(text, tokenizer, max_tokens, pairs=exported.classify.accepts_pairs)
    report(f"tracing {exported.architecture}")
    try:
        _write(model, names, exported, folder)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{exported.architecture} of {resolved.source.id} cannot be converted: {error}"
        ) from error
    return exported


def _load_for_export(resolved: Resolved, spec: BuildSpec) -> PreTrainedModel:
    """With plain attention, whose mask has no infinities: a padded row cannot become NaN."""
    model = load_model(resolved, spec, "eager", register_dense_experts())
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "use_cache"):
            config.use_cache = False
    return model


def _task(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, names: tuple[str, ...]
) -> ClassifyTask:
    config = model.config
    labels = cast(dict[int, str], config.id2label)
    if sorted(labels) != list(range(len(labels))):
        raise UnsupportedModelError(
            f"config.json numbers the labels {sorted(labels)[:8]} in id2label, not from 0 to "
            f"{len(labels) - 1} as the logits are: number them so"
        )
    return ClassifyTask(
        labels=tuple(str(labels[i]) for i in range(len(labels))),
        problem=_problem(config.problem_type, len(labels)),
        accepts_pairs=accepts_pairs(tokenizer, config, takes_types="token_type_ids" in names),
        padding="invariant",
        pad_id=pad_id(model, tokenizer),
    )


def _problem(
    stated: str | None, num_labels: int
) -> Literal["single_label", "multi_label", "regression"]:
    """As transformers' pipeline decides: softmax over one label would say nothing."""
    if num_labels == 1 and stated != "regression":
        return "multi_label"
    return _PROBLEMS[stated or "single_label_classification"]


def _write(
    model: PreTrainedModel, names: tuple[str, ...], exported: ExportedClassifier, folder: Path
) -> None:
    if "linear_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ()):
        raise UnsupportedModelError(
            "it has layers of linear attention or Mamba, which transformers computes in a loop "
            "over the length"
        )
    module = module_of(model)
    example = _example(names, exported.pad_id)
    with tabled_distances(model, exported.max_tokens):
        _try(module, example, num_labels=len(exported.classify.labels))
        write_graph(module, example, folder / FILE_NAME, exported.max_tokens)


def _example(names: tuple[str, ...], pad: int) -> dict[str, TorchTensor]:
    """Two rows of different length: a dimension of 1, or no padding, could be taken for fixed."""
    length, short = 7, 5
    ids = torch.arange(2 * length).reshape(2, length) + 3
    ids[1, short:] = pad
    mask = torch.ones_like(ids)
    mask[1, short:] = 0
    tensors = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: tensors[name] for name in names}


def _try(module: nn.Module, example: Mapping[str, TorchTensor], num_labels: int) -> None:
    """Asks the model itself first: what fails here has nothing to do with the conversion."""
    try:
        with quiet(), torch.no_grad():
            logits = module(**example)
    except Exception as error:  # whatever the model's code raises
        raise UnsupportedModelError(
            f"its code does not take {', '.join(example)} alone: {reason_of(error)}"
        ) from error
    if tuple(logits.shape) != (2, num_labels):
        raise UnsupportedModelError(
            f"it gives logits of shape {tuple(logits.shape)} for 2 texts, not (2, {num_labels})"
        )
