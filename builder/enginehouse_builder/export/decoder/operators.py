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

__all__ = [
    "ATTENTION",
    "CACHE_UPDATE",
    "DOMAIN",
    "NO_SINK",
    "OPSET",
    "SINKS_INPUT",
    "SLOPES_INPUT",
    "attention",
    "bodies",
    "cache_update",
]

DOMAIN = "enginehouse"
ATTENTION = "Attention"
CACHE_UPDATE = "CacheUpdate"
SLOPES_INPUT, SINKS_INPUT = 4, 5  # of Attention
NO_SINK = torch.finfo(torch.float32).min  # finite: a row that sees nothing gives 0, not NaN
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


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_length: Tensor,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """What each new token makes of the slot's tokens up to itself, as a node of the graph.

    Args:
        query: Of new tokens, scaled, `[batch, heads, length, key_dim]`.
        key: Of each slot, `[batch, kv_heads, capacity, key_dim]`.
        value: Of each slot, `[batch, kv_heads, capacity, value_dim]`.
        kv_length: Tokens of each slot with the new ones, which are its last, `[batch]` int32.
        slopes: `slope * (key's position - query's)`, at most 0, is added to a score, `[heads]`
            fp32; 0 for none (ALiBi, Press et al. 2022).
        sinks: Logits beside the scores that take part in the softmax and have no value, `[heads]`
            fp32; NO_SINK for none (GPT-OSS).
        window: How many positions, itself included, a token sees; 0 for all.
        softcap: `c` of the scores `c * tanh(score / c)`, before slopes and masks; 0 for none.

    Returns:
        `[batch, heads, length, value_dim]`.
    """
    inputs = [query, key, value, kv_length, slopes, sinks]
    while inputs[-1] is None:
        inputs.pop()
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{ATTENTION}",
        inputs,
        {"window": window, "softcap": softcap},
        dtype=query.dtype,
        shape=(*query.shape[:3], value.shape[3]),
        version=1,
    )


def bodies(*, has_slopes: bool = False, has_sinks: bool = False) -> list[onnx.FunctionProto]:
    """Both operators as functions of the standard's own, Attention with these optional inputs."""
    mask = _SLOPED_MASK if has_slopes else _PLAIN_MASK
    ending = _ATTEND_WITH_SINKS if has_sinks else _ATTEND
    texts = (_ATTENTION_BEGIN + mask + ending, _UPDATE_BODY)
    return [onnx.parser.parse_function(text) for text in texts]


# Attention's own causal mask is aligned to the end of what nonpad_kv_seqlen says of each slot; the
# mask built here adds the window. TensorScatter and Attention take int64 lengths.
_ATTENTION_BEGIN = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{ATTENTION} <window, softcap> (query, key, value, kv_length, slopes, sinks) => (output)
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
    is_seen = Or (is_near, is_unbounded)
"""
_PLAIN_MASK = """
    mask = Identity (is_seen)
"""
_SLOPED_MASK = """
    inner = Constant <value_ints: ints = [1, 2]> ()
    per_head = Unsqueeze (slopes, inner)
    behind = Neg (distances)
    behind_float = CastLike (behind, slopes)
    bias = Mul (per_head, behind_float)
    hidden = Constant <value_float: float = -inf> ()
    whole_mask = Where (is_seen, bias, hidden)
    mask = CastLike (whole_mask, query)
"""
_ATTEND = """
    output = Attention <is_causal = 1, scale = 1.0, softcap: float = @softcap>
        (query, key, value, mask, , , lengths)
}
"""
# With m = log sum exp of the scores, a sink leaves them exp(m) / (exp(m) + exp(sink)) of the whole.
_ATTEND_WITH_SINKS = """
    attended, , , scores =
        Attention <is_causal = 1, scale = 1.0, softcap: float = @softcap, qk_matmul_output_mode = 2>
        (query, key, value, mask, , , lengths)
    scores_float = CastLike (scores, sinks)
    last = Constant <value_ints: ints = [-1]> ()
    sum = ReduceLogSumExp (scores_float, last)
    apart = Constant <value_ints: ints = [1, 2]> ()
    sink = Unsqueeze (sinks, apart)
    above = Sub (sum, sink)
    share = Sigmoid (above)
    share_like = CastLike (share, attended)
    output = Mul (attended, share_like)
}
"""
_UPDATE_BODY = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{CACHE_UPDATE} (cache, update, write_index) => (output)
{{
    index = Cast <to = 7> (write_index)
    output = TensorScatter <axis = -2> (cache, update, index)
}}
"""
