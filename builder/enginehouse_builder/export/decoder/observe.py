"""One call of the model that shows what its attention is: seen, not guessed from a configuration.

Models of the same library differ in ways that their configurations do not tell: whether attention
goes through the library's interface at all, which of two windows a mask really has, what is done to
keys after they were cached. What is seen here decides what is written; anything else is refused.
"""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export.graph import reason_of
from enginehouse_builder.export.loading import quiet
from enginehouse_builder.manifest import AttentionLayer

from .expansion import is_made_token_by_token, moved_on
from .interface import ForeignCache, check_extras, head_rows, plugged
from .masks import MaskFunction, window_of

__all__ = ["Observed", "observe"]

_BATCH, _LENGTH, _ROWS = 2, 3, (2, 5, 4)


@dataclass(frozen=True, slots=True)
class Observed:
    """What a decoder turned out to be.

    Attributes:
        layers: Shape of each layer's attention.
        vocab_size: Width of the logits.
    """

    layers: tuple[AttentionLayer, ...]
    vocab_size: int


def observe(model: PreTrainedModel) -> Observed:
    """Calls the model once and looks at its attention.

    Raises:
        UnsupportedModelError: The attention is not one that can be converted, or not everywhere.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModelError("its code takes no positions of tokens (position_ids)")
    seen = _Observer()
    observed = _observed(model, seen)
    if seen.expanded:
        _check_expansion(model, seen)
    return observed


def _observed(model: PreTrainedModel, seen: "_Observer") -> Observed:
    ids = torch.arange(_BATCH * _LENGTH).reshape(_BATCH, _LENGTH)
    positions = torch.arange(_LENGTH).expand(_BATCH, -1)
    with (
        plugged(model, seen.attend, seen.mask),
        head_rows(model, lambda: torch.tensor(_ROWS)) as came,
        quiet(),
        torch.no_grad(),
    ):
        try:
            logits = model(
                input_ids=ids, position_ids=positions, past_key_values=seen, use_cache=True
            )[0]
        except UnsupportedModelError:
            raise
        except Exception as error:  # whatever the model's code raises
            raise UnsupportedModelError(
                f"its code does not take a cache of keys and values: {reason_of(error)}"
            ) from error
    if came != [3] or logits.dim() != 3 or logits.shape[:2] != (1, len(_ROWS)):
        raise UnsupportedModelError("its logits are not those of one head over its tokens")
    return Observed(_layers(seen, model), logits.shape[-1])


def _check_expansion(model: PreTrainedModel, seen: "_Observer") -> None:
    """Makes sure that keys and values are of each token alone where they are not what is cached."""
    moved = _Observer(is_moved=True)
    _observed(model, moved)
    for layer, made in seen.expanded.items():
        both = zip(made, moved.expanded[layer], strict=True)
        if not all(is_made_token_by_token(*pair) for pair in both):
            raise UnsupportedModelError(
                f"layer {layer} attends to other keys and values than it caches, and makes those "
                "of a token not of that token's alone"
            )


def _layers(seen: "_Observer", model: PreTrainedModel) -> tuple[AttentionLayer, ...]:
    wanted = int(model.config.get_text_config().num_hidden_layers)
    if seen.written != list(range(wanted)) or list(seen.attended) != seen.written:
        raise UnsupportedModelError(
            f"it has {wanted} layers, of which {len(set(seen.written))} wrote keys and values and "
            f"{len(seen.attended)} attended to them through transformers' interface: the others "
            "compute attention in their own way, or none, or share another's keys"
        )
    return tuple(seen.attended.values())


class _Observer(ForeignCache):
    """Notes what is written and attended to; its attention gives zeros.

    Attributes:
        written: Layers, in order.
        attended: Their shapes.
        expanded: Keys and values of those that made them of what they had cached.
    """

    def __init__(self, *, is_moved: bool = False) -> None:
        """Gives back what is cached, or has it `moved_on`."""
        super().__init__()
        self._is_moved = is_moved
        self.expanded: dict[int, tuple[Tensor, Tensor]] = {}
        self.written: list[int] = []
        self.attended: dict[int, AttentionLayer] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def write(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.written.append(self.layer)
        self._last = (moved_on(key), moved_on(value)) if self._is_moved else (key, value)
        return self._last

    def mask(self, mask_function: MaskFunction) -> Tensor:
        window = window_of(mask_function)
        if window is None:
            raise UnsupportedModelError(
                "what a token sees is neither all tokens before it nor the last so many"
            )
        return torch.full((1, 1, 1, 1), window)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **extras: object,
    ) -> tuple[Tensor, None]:
        extras.pop("sliding_window", None)  # the mask is what counts
        check_extras(extras)
        if self._last is None:
            raise UnsupportedModelError("it attends to other keys and values than it caches")
        if self._last[0] is not key or self._last[1] is not value:
            self.expanded[self.layer] = (key, value)
        if attention_mask is None or attention_mask.shape != (1, 1, 1, 1):
            raise UnsupportedModelError("it masks its attention in its own way")
        self._last = None
        heads, kv_heads = query.shape[1], key.shape[1]
        lengths = {states.shape[2] for states in (query, key, value)}
        if heads % kv_heads or value.shape[1] != kv_heads or lengths != {_LENGTH}:
            raise UnsupportedModelError(
                f"its attention has queries {tuple(query.shape)} and keys {tuple(key.shape)}"
            )
        self.attended[self.layer] = AttentionLayer(
            num_heads=heads,
            num_kv_heads=kv_heads,
            key_dim=key.shape[3],
            value_dim=value.shape[3],
            window=int(attention_mask.item()),
        )
        return query.new_zeros(query.shape[0], _LENGTH, heads, value.shape[3]), None
