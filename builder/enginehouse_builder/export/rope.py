"""Rotary positions that change with a text's length, held as they are for one length.

transformers scales the rotation of `dynamic` (NTK) and `longrope` by the longest text of each call:
what it says of a text then depends on how the text was cut into calls, and on what was computed
beside it. A cache that sequences share cannot follow that. Here the model is held at the rotation
that transformers uses for a text of the engine's longest sequence: below the length from which it
changes, that is what transformers does with every text; beyond it, with every text beyond it
(longrope) or with those of that very length (dynamic).
"""

from collections.abc import Iterator, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["growing_limits", "hold_rope", "rope_lengths", "switching_lengths"]

_SWITCHING = ("longrope", "dynamic")


class _Rotary(Protocol):
    """What transformers' modules of rotary positions have in common."""

    rope_type: str | dict[str, str]

    def __call__(self, x: Tensor, position_ids: Tensor, *layer_type: str) -> object: ...


def switching_lengths(config: PretrainedConfig) -> tuple[int, ...]:
    """Lengths of a text beyond which transformers rotates all of its tokens otherwise."""
    return tuple(
        _original_length(kind, config) for kind in _kinds(config) if _type(kind) in _SWITCHING
    )


def rope_lengths(config: PretrainedConfig) -> tuple[int, ...]:
    """Lengths of a text that the model's scaling of positions takes it beyond."""
    return tuple(
        _original_length(kind, config)
        for kind in _kinds(config)
        if _type(kind) in _SWITCHING or kind.get("original_max_position_embeddings")
    )


def growing_limits(config: PretrainedConfig) -> tuple[int, ...]:
    """What a model takes whose positions grow beyond those that its configuration has."""
    return tuple(
        int(config.max_position_embeddings * float(cast(float, kind["factor"])))
        for kind in _kinds(config)
        if _type(kind) == "dynamic"
    )


def hold_rope(model: PreTrainedModel, num_tokens: int) -> None:
    """Has a model rotate every text as transformers does one of `num_tokens`, from now on."""
    like, last = torch.zeros(1), torch.tensor([[num_tokens - 1]])
    for module in model.modules():
        if not hasattr(module, "rope_type"):
            continue
        rotary = cast(_Rotary, module)
        if isinstance(rotary.rope_type, dict):
            kinds = dict(rotary.rope_type)
            for layer_type, kind in kinds.items():
                if kind in _SWITCHING:
                    rotary(like, last, layer_type)
                    kinds[layer_type] = "default"
            rotary.rope_type = kinds
        elif rotary.rope_type in _SWITCHING:
            rotary(like, last)
            rotary.rope_type = "default"  # what is computed once is not looked at again


def _kinds(config: PretrainedConfig) -> Iterator[Mapping[str, object]]:
    """The scaling of all layers, or of each type of them."""
    rope = getattr(config, "rope_parameters", None) or {}
    yield from (kind for kind in (rope, *rope.values()) if isinstance(kind, dict))


def _type(kind: Mapping[str, object]) -> object:
    return kind.get("rope_type")


def _original_length(kind: Mapping[str, object], config: PretrainedConfig) -> int:
    if _type(kind) == "dynamic":
        return int(config.max_position_embeddings)
    original = kind.get("original_max_position_embeddings")
    original = original or getattr(config, "original_max_position_embeddings", None)
    return int(cast(int, original or config.max_position_embeddings))
