"""Lets a decoder's graph reduce its logits, so that a device need not give all of them back.

Beside the logits it then has, of each row, the largest with their tokens, and the sum of the
weights of the whole vocabulary relative to the largest. What can be sampled from these is known to
whoever samples. All of it stays in fp32: a logit comes out of both forms as the same number.
"""

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from enginehouse_server.engine.reduction import BEST_LOGITS, BEST_TOKENS, WEIGHT_SUMS

__all__ = ["NUM_BEST", "add_best"]

# Enough for a top_k of 64 and for most of a nucleus; ONNX Runtime's kernel takes as long for 8, and
# TensorRT's takes at most 3840.
NUM_BEST = 128
_OURS = "enginehouse_best"  # begins every name that is added, so that none is there already


def add_best(graph: GraphProto) -> int:
    """Adds the outputs to a graph, in place, if its `logits` `[rows, vocab]` are fp32.

    `best_logits` `[rows, k]` fp32 and `best_tokens` `[rows, k]` int32, the largest first, and
    `weight_sums` `[rows]` fp32: of `exp(logit - best_logits[row, 0])`.

    Returns:
        `k`: NUM_BEST, or the vocabulary's size if it is smaller; 0 if nothing was added.
    """
    [logits] = (o.type.tensor_type for o in graph.output if o.name == "logits")
    if logits.elem_type != TensorProto.FLOAT:
        return 0
    rows, vocab = logits.shape.dim
    k = min(NUM_BEST, vocab.dim_value)
    for name, value in (("k", [k]), ("begin", [0]), ("end", [1]), ("axis", [1])):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), _named(name)))
    graph.node.extend(_nodes())
    for name, kind, width in (
        (BEST_LOGITS, TensorProto.FLOAT, [k]),
        (BEST_TOKENS, TensorProto.INT32, [k]),
        (WEIGHT_SUMS, TensorProto.FLOAT, []),
    ):
        shape = [rows.dim_param or rows.dim_value, *width]
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    return k


def _nodes() -> list[NodeProto]:
    best, below, weights, ids = map(_named, ("best", "below", "weights", "ids"))
    begin, end, axis = map(_named, ("begin", "end", "axis"))
    return [
        helper.make_node("TopK", ["logits", _named("k")], [BEST_LOGITS, ids], axis=-1, sorted=1),
        helper.make_node("Cast", [ids], [BEST_TOKENS], to=TensorProto.INT32),
        helper.make_node("Slice", [BEST_LOGITS, begin, end, axis], [best]),
        helper.make_node("Sub", ["logits", best], [below]),
        helper.make_node("Exp", [below], [weights]),
        helper.make_node("ReduceSum", [weights, axis], [WEIGHT_SUMS], keepdims=0),
    ]


def _named(name: str) -> str:
    return f"{_OURS}_{name}"
