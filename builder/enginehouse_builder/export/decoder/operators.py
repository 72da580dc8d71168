"""The two operators of a decoder's graph, and what they mean in standard ones.

`enginehouse::CacheUpdate` writes new keys or values into a slot at its own place;
`enginehouse::Attention` lets each new token see the slot's tokens up to itself. A runtime that has
something better puts it in their place; any other runs the bodies given here. What more some
model's attention does becomes an attribute or an optional input of the same operator.
"""

import onnx
import onnx.parser
import torch
from torch import Tensor

__all__ = ["ATTENTION", "CACHE_UPDATE", "DOMAIN", "OPSET", "attention", "bodies", "cache_update"]

DOMAIN = "enginehouse"
ATTENTION = "Attention"
CACHE_UPDATE = "CacheUpdate"
OPSET = 24  # the first with TensorScatter, and with lengths of keys in Attention


def cache_update(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """The cache with new entries, as a node of the graph that is traced.

    Args:
        cache: Keys or values of each slot, `[batch, kv_heads, capacity, dim]`.
        update: Those of new tokens, `[batch, kv_heads, length, dim]`.
        write_index: Where the first new token of each slot goes, `[batch]` int32.
    """
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{CACHE_UPDATE}",
        [cache, update, write_index],
        {},
        dtype=cache.dtype,
        shape=cache.shape,
        version=1,
    )


def attention(query: Tensor, key: Tensor, value: Tensor, kv_length: Tensor, window: int) -> Tensor:
    """What each new token makes of the slot's tokens up to itself, as a node of the graph.

    Args:
        query: Of new tokens, scaled, `[batch, heads, length, key_dim]`.
        key: Of each slot, `[batch, kv_heads, capacity, key_dim]`.
        value: Of each slot, `[batch, kv_heads, capacity, value_dim]`.
        kv_length: Tokens of each slot with the new ones, which are its last, `[batch]` int32.
        window: How many positions, itself included, a token sees; 0 for all.

    Returns:
        `[batch, heads, length, value_dim]`.
    """
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{ATTENTION}",
        [query, key, value, kv_length],
        {"window": window},
        dtype=query.dtype,
        shape=(*query.shape[:3], value.shape[3]),
        version=1,
    )


def bodies() -> list[onnx.FunctionProto]:
    """Both operators as functions of the standard's own."""
    return [onnx.parser.parse_function(text) for text in (_ATTENTION_BODY, _UPDATE_BODY)]


# Attention's own causal mask is aligned to the end of what nonpad_kv_seqlen says of each slot; the
# mask built here adds the window. TensorScatter and Attention take int64 lengths.
_ATTENTION_BODY = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{ATTENTION} <window> (query, key, value, kv_length) => (output)
{{
    lengths = Cast <to = 7> (kv_length)
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    num_new_1d = Shape <start = 2, end = 3> (query)
    num_new = Squeeze (num_new_1d)
    capacity_1d = Shape <start = 2, end = 3> (key)
    capacity = Squeeze (capacity_1d)
    new = Range (zero, num_new, one)
    columns = Range (zero, capacity, one)
    starts = Sub (lengths, num_new)
    second = Constant <value_ints: ints = [1]> ()
    start_rows = Unsqueeze (starts, second)
    positions = Add (start_rows, new)
    outer = Constant <value_ints: ints = [1, 3]> ()
    rows = Unsqueeze (positions, outer)
    distances = Sub (rows, columns)
    size = Constant <value_int: int = @window> ()
    is_near = Less (distances, size)
    is_unbounded = Equal (size, zero)
    mask = Or (is_near, is_unbounded)
    output = Attention <is_causal = 1, scale = 1.0> (query, key, value, mask, , , lengths)
}}
"""
_UPDATE_BODY = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{CACHE_UPDATE} (cache, update, write_index) => (output)
{{
    index = Cast <to = 7> (write_index)
    output = TensorScatter <axis = -2> (cache, update, index)
}}
"""
