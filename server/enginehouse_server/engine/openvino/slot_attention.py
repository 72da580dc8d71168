"""Attention over slots, composed of OpenVINO's own operators: for what no single one can express.

The cache of one layer and kind is `[kv_heads, pages, PAGE, width]`; which of its pages a row of the
step sees, one after the other, is said by a table. The pages that a step needs are gathered, the
new entries put into that copy, and attended to: the time goes by what the sequences have, not by
what their slots could hold. The new entries themselves are given out, for the caller to keep.
"""

from typing import NamedTuple

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import ArrayLike, DTypeLike

from enginehouse_server.engine.decoder import LayerGeometry

__all__ = ["PAGE", "Bias", "Place", "attend", "distances_of", "gathered", "is_seen"]

PAGE = 32  # tokens that lie together in memory


class Place(NamedTuple):
    """Where the rows of a step are.

    Attributes:
        pages: What each row sees, `[batch, n]` int32: positions 0 to `n * PAGE`.
        written: Where new tokens go in `[batch * n * PAGE]`, `[batch * length]` int32.
        start: Position of each row's first new token, `[batch]` int32.
    """

    pages: ov.Output
    written: ov.Output
    start: ov.Output


class Bias(NamedTuple):
    """What changes the scores of a layer; None for what does not.

    Attributes:
        softcap: `c` of the scores `c * tanh(score / c)`, before all else; 0 for none.
        distances: Of each key's position from each query's, at most 0 where it is seen,
            `[1, batch, 1, length, n * PAGE]` int32.
        slopes: Times the distance is added to a score, `[heads]` fp32.
        sinks: Logits that take part in the softmax and have no value, `[heads]` fp32.
    """

    softcap: float
    distances: ov.Output
    slopes: ov.Output | None
    sinks: ov.Output | None


def gathered(
    cache: ov.Output, update: ov.Output, place: Place, heads: int, width: int
) -> ov.Output:
    """What the rows' pages hold with the new entries in them.

    Args:
        cache: Keys or values, `[heads, pages, PAGE, width]`.
        update: New ones, `[batch, heads, length, width]`.
        place: Where.
        heads: Of keys and values.
        width: Of one of a head.

    Returns:
        `[heads, batch, n * PAGE, width]`.
    """
    flat = _reshape(ops.gather(cache, place.pages, _ints(1)), heads, -1, width)
    new = _reshape(ops.transpose(update, _ints(1, 0, 2, 3)), heads, -1, width)
    # In place: the runtime sees that nobody else reads what was gathered.
    whole = ops.scatter_update(flat, place.written, new, _ints(1))
    return _reshape(whole, heads, _size(place.pages, 0), -1, width)


def distances_of(query: ov.Output, place: Place) -> ov.Output:
    """Of every position from the new tokens', `[1, batch, 1, length, n * PAGE]` int32."""
    zero, one = _constant(0, np.int32), _constant(1, np.int32)
    length = ops.squeeze(_size(query, 2), _ints(0))
    steps = ops.range(zero, ops.convert(length, "i32"), one, "i32")
    num_pages = ops.squeeze(_size(place.pages, 1), _ints(0))
    end = ops.multiply(ops.convert(num_pages, "i32"), _constant(PAGE, np.int32))
    columns = ops.range(zero, end, one, "i32")
    at = ops.add(ops.unsqueeze(place.start, _ints(1)), steps)  # [batch, length]
    behind = ops.subtract(columns, ops.unsqueeze(at, _ints(2)))
    return ops.unsqueeze(behind, _ints(0, 2)).output(0)


def is_seen(distances: ov.Output, window: int) -> ov.Output:
    """Whether a new token sees a position: none after itself, of a window only what is near."""
    seen = ops.less_equal(distances, _constant(0, np.int32))
    if window:
        near = ops.greater(distances, _constant(-window, np.int32))
        seen = ops.logical_and(seen, near)
    return seen.output(0)


def attend(
    query: ov.Output,
    key: ov.Output,
    value: ov.Output,
    seen: ov.Output,
    bias: Bias,
    geometry: LayerGeometry,
) -> ov.Output:
    """What each new token makes of what it sees.

    Args:
        query: Of new tokens, scaled, `[batch, heads, length, key_dim]`.
        key: As `gathered` gives.
        value: As `gathered` gives.
        seen: As `is_seen` gives.
        bias: Of the layer.
        geometry: Of the layer.

    Returns:
        `[batch, heads, length, value_dim]`.
    """
    kv_heads, group = geometry.num_kv_heads, geometry.num_heads // geometry.num_kv_heads
    split = _reshape(query, 0, kv_heads, group, -1, geometry.key_dim)
    grouped = _reshape(_swapped(split), 0, 0, -1, geometry.key_dim)  # [kv_heads, batch, g * len, d]
    scores = ops.matmul(grouped, key, False, True).output(0)
    if bias.softcap:
        cap = _constant(bias.softcap, np.float32)
        scores = ops.multiply(ops.tanh(ops.divide(scores, cap)), cap).output(0)
    apart = _reshape(scores, 0, 0, group, _size(query, 2), -1)
    shares = _shares(apart, seen, bias, (kv_heads, 1, group, 1, 1))
    together = _reshape(shares, 0, 0, -1, _size(key, 2))
    attended = ops.matmul(together, value, False, False)
    heads = _swapped(_reshape(attended, 0, 0, group, -1, geometry.value_dim))
    return _reshape(heads, 0, geometry.num_heads, -1, geometry.value_dim)


def _shares(scores: ov.Output, seen: ov.Output, bias: Bias, per_head: tuple[int, ...]) -> ov.Output:
    """How much each new token takes of each position, `[kv_heads, batch, group, length, places]`.

    Args:
        scores: Of the same shape.
        seen: As `is_seen` gives.
        bias: Of the layer.
        per_head: Shape of what a head has one of, beside the scores.
    """
    if bias.slopes is not None:
        slopes = _reshape(bias.slopes, *per_head)
        scores = ops.add(scores, ops.multiply(slopes, ops.convert(bias.distances, "f32"))).output(0)
    # Chosen, not added: whatever the cache holds in a place that nobody wrote has no effect.
    scores = ops.select(seen, scores, _constant(-np.inf, np.float32)).output(0)
    if bias.sinks is None:
        return ops.softmax(scores, -1).output(0)
    sinks, last = _reshape(bias.sinks, *per_head), _ints(-1)
    most = ops.maximum(ops.reduce_max(scores, last, True), sinks)
    powers = ops.exp(ops.subtract(scores, most))
    rest = ops.exp(ops.subtract(sinks, most))
    return ops.divide(powers, ops.add(ops.reduce_sum(powers, last, True), rest)).output(0)


def _swapped(tensor: ov.Output) -> ov.Output:
    """`[a, b, group, length, width]` as `[b, a, group, length, width]`."""
    return ops.transpose(tensor, _ints(1, 0, 2, 3, 4)).output(0)


def _reshape(tensor: ov.Node | ov.Output, *sizes: int | ov.Output) -> ov.Output:
    """In a shape of which 0 is the tensor's own size there, and -1 the rest."""
    parts = [_ints(size) if isinstance(size, int) else size for size in sizes]
    return ops.reshape(tensor, ops.concat(parts, 0), True).output(0)


def _size(tensor: ov.Output, axis: int) -> ov.Output:
    """One of the tensor's sizes, `[1]` int64."""
    return ops.gather(ops.shape_of(tensor), _ints(axis), _ints(0)).output(0)


def _ints(*values: int) -> ov.Output:
    return _constant(values, np.int64)


def _constant(value: ArrayLike, dtype: DTypeLike) -> ov.Output:
    return ops.constant(np.array(value, dtype)).output(0)
