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
from .families import is_adaptable
from .interface import STATES, ForeignCache, head_rows, logits_of, plugged, understand
from .masks import MaskFunction, window_of
from .meaning import check_meaning
from .rehearsal import check_adapted, check_positions

__all__ = ["Observed", "observe"]

_BATCH, _LENGTH, _ROWS = 2, 3, (2, 5, 4)
_UNCLEAR = -1  # a window that is none
_WITHOUT_POSITIONS = {
    True: f"it is recurrent: {STATES}",
    False: "its code takes no positions of tokens (position_ids), as that of old models and of the "
    "decoders of encoder-decoders; choose a decoder that takes them",
}


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
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if not takes_positions and not is_adaptable(model):
        raise UnsupportedModelError(_WITHOUT_POSITIONS[bool(getattr(model, "_is_stateful", False))])
    seen = _Observer()
    observed = _observed(model, seen)
    if takes_positions:
        check_positions(model)
    if seen.expanded:
        _check_expansion(model, seen)
    return observed


def _observed(model: PreTrainedModel, seen: "_Observer") -> Observed:
    ids = torch.arange(_BATCH * _LENGTH).reshape(_BATCH, _LENGTH)
    positions = torch.arange(_LENGTH).expand(_BATCH, -1)
    with (
        plugged(model, seen, seen.mask),
        head_rows(model, lambda: torch.tensor(_ROWS)) as came,
        quiet(),
        torch.no_grad(),
    ):
        try:
            logits = logits_of(model, ids, positions, seen)
        except UnsupportedModelError:
            raise
        except Exception as error:  # whatever the model's code raises
            raise UnsupportedModelError(
                f"its code does not take a cache of keys and values: {reason_of(error)}"
            ) from error
    if came != [3] or logits.dim() != 3 or logits.shape[:2] != (1, len(_ROWS)):
        raise UnsupportedModelError("its logits are not those of one head over its tokens")
    observed = Observed(_layers(seen, model), logits.shape[-1])
    if is_adaptable(model):
        check_adapted(model, observed.layers)
    return observed


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
        # Some models build masks that no layer of theirs uses.
        return torch.full((1, 1, 1, 1), _UNCLEAR if window is None else window)

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
        given = understand(extras)
        if self._last is None:
            raise UnsupportedModelError(
                "it attends to other keys and values than it caches: twice to its own, or to "
                "another layer's, as Gemma 3n's and the small Gemma 4's last layers do"
            )
        if self._last[0] is not key or self._last[1] is not value:
            self.expanded[self.layer] = (key, value)
        if attention_mask is None or attention_mask.shape != (1, 1, 1, 1):
            raise UnsupportedModelError("it masks its attention in its own way")
        if attention_mask.item() == _UNCLEAR:
            raise UnsupportedModelError(
                "what a token sees is neither all tokens before it nor the last so many; an "
                "encoder sees both ways, unless its configuration says is_decoder, as that of one "
                "trained to generate does"
            )
        self._last = None
        heads, kv_heads = query.shape[1], key.shape[1]
        lengths = {states.shape[2] for states in (query, key, value)}
        if heads % kv_heads or value.shape[1] != kv_heads or lengths != {_LENGTH}:
            raise UnsupportedModelError(
                f"its attention has queries {tuple(query.shape)} and keys {tuple(key.shape)}"
            )
        for per_head in (given.slopes, given.sinks):
            if per_head is not None and per_head.shape != (heads,):
                raise UnsupportedModelError(
                    f"its attention has {heads} heads, and for them slopes or sinks of the shape "
                    f"{tuple(per_head.shape)}"
                )
        layer = AttentionLayer(
            num_heads=heads,
            num_kv_heads=kv_heads,
            key_dim=key.shape[3],
            value_dim=value.shape[3],
            window=_narrower(given.window, int(attention_mask.item())),
            softcap=given.softcap,
            has_slopes=given.slopes is not None,
            has_sinks=given.sinks is not None,
        )
        check_meaning(module, layer, scaling, extras)
        self.attended[self.layer] = layer
        return query.new_zeros(query.shape[0], _LENGTH, heads, value.shape[3]), None


def _narrower(*windows: int) -> int:
    """What two windows leave; 0 is all."""
    return min((w for w in windows if w), default=0)
