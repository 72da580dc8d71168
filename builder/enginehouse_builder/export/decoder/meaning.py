"""What attention means here, in torch, and whether the function that a model has for it agrees.

transformers lets go of attention at one place: a function of the model's own file, which says what
is computed where nothing replaces it. What a model hands over there has names, and a name says less
than numbers do: so both are computed on the same random tokens.
"""

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export.graph import reason_of
from enginehouse_builder.manifest import AttentionLayer

from .interface import understand

__all__ = ["attend", "check_meaning"]

_EAGER = "eager_attention_forward"  # its name in every file of transformers' models
_LENGTH, _MOST_SEEN = 12, 5  # tokens, and how many of them a window shows
_QUERY_SCALE = 8.0  # scores spread as trained ones do, so that what bounds them shows
_TOLERANCE = 1e-4  # of the largest value: fp32, sums in another order


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int = 0,
    softcap: float = 0.0,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """What the graph's operator of attention gives for sequences of one length.

    Args:
        query: Of the last tokens, scaled, `[batch, heads, length, key_dim]`.
        key: Of all tokens, `[batch, kv_heads, tokens, key_dim]`.
        value: Of all tokens, `[batch, kv_heads, tokens, value_dim]`.
        window: As the operator's, like the following.
        softcap: Bound of scores.
        slopes: `[heads]`.
        sinks: `[heads]`.

    Returns:
        `[batch, heads, length, value_dim]`.
    """
    length, num_tokens = query.shape[2], key.shape[2]
    group = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(group, dim=1) for states in (key, value))
    scores = query @ key.transpose(2, 3)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distances = _distances(num_tokens)[-length:]
    if slopes is not None:
        scores = scores - slopes[:, None, None] * distances
    scores = scores.masked_fill(~_is_seen(distances, window), -torch.inf)
    if sinks is not None:
        beside = sinks[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, beside], dim=3)
    return scores.softmax(dim=3)[..., :num_tokens] @ value


def check_meaning(
    module: nn.Module, layer: AttentionLayer, scaling: float | None, extras: Mapping[str, object]
) -> None:
    """Compares `attend` with the function of the module's own file, where that has one.

    Args:
        module: Of attention, in fp32.
        layer: What its attention was seen to be.
        scaling: As the module hands it over; None for transformers' own rule.
        extras: Likewise, all else beside queries, keys, values and mask.

    Raises:
        UnsupportedModelError: They differ, or the function does not take what is handed over.
    """
    eager = getattr(sys.modules[type(module).__module__], _EAGER, None)
    if eager is None:
        return
    window, given = min(layer.window, _MOST_SEEN), understand(extras)
    query, key, value = _random_states(layer)
    meant = attend(
        query * (layer.key_dim**-0.5 if scaling is None else scaling),
        key,
        value,
        window=window,
        softcap=layer.softcap,
        slopes=given.slopes,
        sinks=given.sinks,
    )
    is_seen = _is_seen(_distances(_LENGTH), window)
    mask = torch.zeros(is_seen.shape).masked_fill(~is_seen, torch.finfo(torch.float32).min)
    scale = {} if scaling is None else {"scaling": scaling}
    try:
        its_own = eager(module, query, key, value, mask[None, None], **scale, **extras)[0]
        error = float((its_own - meant.transpose(1, 2)).abs().max())
    except Exception as failure:  # whatever the model's code raises
        raise UnsupportedModelError(
            f"its own code of attention cannot be tried: {reason_of(failure)}"
        ) from failure
    if not error <= _TOLERANCE * float(meant.abs().max()):
        raise UnsupportedModelError(
            f"the attention of {type(module).__name__} is not what it was taken for: on random "
            f"tokens its own code gives values that are off by {error:.2g}"
        )


def _random_states(layer: AttentionLayer) -> tuple[Tensor, Tensor, Tensor]:
    """A query, a key and a value of each token, `[1, heads, tokens, width]`."""
    generator = torch.Generator().manual_seed(0)

    def states(heads: int, width: int) -> Tensor:
        return torch.randn(1, heads, _LENGTH, width, generator=generator)

    return (
        _QUERY_SCALE * states(layer.num_heads, layer.key_dim),
        states(layer.num_kv_heads, layer.key_dim),
        states(layer.num_kv_heads, layer.value_dim),
    )


def _distances(num_tokens: int) -> Tensor:
    """From each token back to each, `[tokens, tokens]`; below 0 where it comes after."""
    places = torch.arange(num_tokens)
    return places[:, None] - places


def _is_seen(distances: Tensor, window: int) -> Tensor:
    is_past = distances >= 0
    return is_past & (distances < window) if window else is_past
