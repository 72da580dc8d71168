"""Writes the checkpoint that adapter and base make together, in the base's own form.

A merged weight is W + scale * B A (LoRA, Hu et al. 2021), summed in fp32 and kept so, whatever the
base's precision: rounded back, small changes would be lost.

How a weight lies is the model's to say: peft corrects `fan_in_fan_out` by each module's class, and
writes into the configuration what it was given.
"""

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from enginehouse_builder.errors import ResolveError, UnsupportedModelError
from enginehouse_builder.weights import PICKLES, weight_files

from .description import WEIGHTS_FILE, Adapter, matrix_name

__all__ = ["BaseLayout", "layout_of", "merge"]

_HEADS = {"lm_head", "embed_out"}  # by today's name and by that of older checkpoints and adapters


class BaseLayout(NamedTuple):
    """How a base model keeps what an adapter may change.

    Attributes:
        transposed: Modules whose weights are `[in, out]`, as GPT-2's are.
        tied: Modules whose weight is another's, as a head's is that may be the table of embeddings.
    """

    transposed: frozenset[str]
    tied: frozenset[str]


def layout_of(model: PreTrainedModel) -> BaseLayout:
    """The layout of a model, which needs no weights for that."""
    turned = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
    tied = {name.removesuffix(".weight") for name in getattr(model, "all_tied_weights_keys", ())}
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        tied |= _HEADS
    return BaseLayout(frozenset(turned), frozenset(tied))


def merge(
    base: Path,
    layout: BaseLayout,
    adapter: Adapter,
    target: Path,
    report: Callable[[str], None],
) -> None:
    """Writes the merged checkpoint into `target`; one file of weights is in memory at a time.

    Args:
        base: Folder of the base model.
        layout: Of that model.
        adapter: What changes it.
        target: Exists and is empty.
        report: Is told what goes on.

    Raises:
        UnsupportedModelError: The adapter changes a weight that the base does not have.
        ResolveError: A matrix does not fit its weight.
    """
    files = weight_files(base, base.name)
    module_of = _places(files, base, adapter, layout.tied)
    left_out = shutil.ignore_patterns("*.safetensors", *PICKLES, ".git", ".cache")
    shutil.copytree(base, target, ignore=left_out, dirs_exist_ok=True)
    with safe_open(adapter.folder / WEIGHTS_FILE, framework="pt") as matrices:
        for file in files:
            report(f"merging {adapter.name} into {file.name}")
            with safe_open(file, framework="pt") as weights:
                metadata = weights.metadata()
                tensors = {name: _tensor(weights, name) for name in list(weights.keys())}
            for name in tensors.keys() & module_of.keys():
                module = module_of[name]
                delta = _delta(matrices, module, adapter)
                delta = delta.T if module in layout.transposed else delta
                tensors[name] = _sum(tensors[name], delta, name, adapter)
            save_file(tensors, target / file.name, metadata)


def _places(
    files: list[Path], base: Path, adapter: Adapter, tied: Collection[str]
) -> Mapping[str, str]:
    """The adapter's module for each weight that it changes, by the weight's name."""
    held: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as weights:
            held.update(weights.keys())
    places: dict[str, str] = {}
    for module in adapter.scales:
        # A checkpoint saved without its head has no name of the model before its weights'.
        names = (f"{module}.weight", f"{module.partition('.')[2]}.weight")
        name = next((n for n in names if n in held), None)
        if name is None or module in tied:
            why = "is tied to the embeddings" if name else f"{base.name} has no weight of that name"
            raise UnsupportedModelError(
                f"the adapter {adapter.folder} changes {module!r}, but {why}: "
                "merge it with peft (merge_and_unload), save the model, and build that"
            )
        places[name] = module
    return places


def _delta(matrices: safe_open, module: str, adapter: Adapter) -> torch.Tensor:
    """What is added to a weight, `[out, in]`, fp32."""
    a, b = (_tensor(matrices, matrix_name(module, side)).float() for side in "AB")
    if a.dim() != 2 or b.dim() != 2 or b.shape[1] != a.shape[0]:
        raise ResolveError(
            f"{adapter.folder}: the matrices of {module} have shapes {tuple(a.shape)} and "
            f"{tuple(b.shape)}, which do not multiply"
        )
    if a.shape[0] != adapter.ranks[module]:
        raise ResolveError(
            f"{adapter.folder}: the matrices of {module} are of rank {a.shape[0]}, and its "
            f"configuration says {adapter.ranks[module]}: the two do not belong together"
        )
    return (b @ a) * adapter.scales[module]


def _tensor(file: safe_open, name: str) -> torch.Tensor:
    return cast(torch.Tensor, file.get_tensor(name))  # type: ignore[no-untyped-call]


def _sum(weight: torch.Tensor, delta: torch.Tensor, name: str, adapter: Adapter) -> torch.Tensor:
    if weight.shape != delta.shape:
        raise ResolveError(
            f"{adapter.folder}: {name} of the model is {tuple(weight.shape)}, and the adapter "
            f"changes {tuple(delta.shape)}: it was trained on another model"
        )
    return (weight.float() + delta).contiguous()
