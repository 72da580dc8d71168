"""A graph in bf16 as one that any runtime computes in fp32, rounding what the other rounds.

Weights are those of bf16, and whatever an operator computes in bf16 is computed in fp32 and then
rounded to bf16, as a GPU does that sums in fp32 and stores in bf16. What only moves numbers rounds
nothing. ONNX Runtime has no kernels in bf16 on a processor, and needs none for this.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .types import FloatTypes
from .weights import read_weight, write_graph

__all__ = ["to_rounding"]

_BF16 = int(TensorProto.BFLOAT16)
_DOMAIN = "enginehouse"  # begins every name that is added, so that none is there already
# These give what they were given.
_MOVES = {
    *("Reshape", "Transpose", "Gather", "GatherElements", "GatherND", "Slice", "Concat", "Split"),
    *("Squeeze", "Unsqueeze", "Expand", "Identity", "Flatten", "Where", "Tile", "Pad", "Neg"),
    *("CacheUpdate", "TRT_KVCacheUpdate", "TensorScatter", "ScatterND", "Relu"),
}


def to_rounding(source: Path, target: Path) -> None:
    """Writes the graph, weights beside it; they are read one at a time.

    Args:
        source: A graph with tensors in bf16.
        target: Where the other goes.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    narrow = FloatTypes(graph, _BF16)
    nodes = list(_nodes(graph, narrow))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == _BF16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    write_graph(model, _weights(list(graph.initializer), source.parent), target)


def _weights(initializers: Iterable[TensorProto], folder: Path) -> Iterator[TensorProto]:
    for tensor in initializers:
        array = read_weight(tensor, folder)
        if tensor.data_type == _BF16:
            array = array.astype(np.float32)
        yield numpy_helper.from_array(array, tensor.name)


def _nodes(graph: GraphProto, narrow: FloatTypes) -> Iterator[NodeProto]:
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type == "Cast":
            to = next(attribute for attribute in node.attribute if attribute.name == "to")
            if to.i == _BF16:
                yield from _rounded(node.input[0], node.output[0])
                continue
        rounded = [name for name in node.output if narrow.is_float(name)]
        if node.op_type in _MOVES or not rounded:
            yield node
            continue
        assert outputs.isdisjoint(rounded), "what a graph gives out is moved or cast"
        for i, name in enumerate(node.output):
            if name in rounded:
                node.output[i] = f"{_DOMAIN}_exact_{name}"
        yield node
        for name in rounded:
            yield from _rounded(f"{_DOMAIN}_exact_{name}", name)


def _rounded(name: str, output: str) -> Iterator[NodeProto]:
    stored = f"{_DOMAIN}_stored_{output}"
    yield helper.make_node("Cast", [name], [stored], to=_BF16)
    yield helper.make_node("Cast", [stored], [output], to=TensorProto.FLOAT)
