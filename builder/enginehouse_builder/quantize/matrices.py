"""Finds a decoder's matrices: constants that products multiply with, and tables of embeddings.

Those of routers are left out: which experts a token goes to is decided by what they give, and what
little they lose by rounding would send some tokens elsewhere. So are tables that are no
vocabulary's, of rotations, slopes or positions: every token's attention rests on them. All are
small.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import onnx

__all__ = ["Matrix", "find_matrices"]

_CHOICES, _PRODUCTS = ("TopK", "ArgMax"), ("MatMul", "Gemm")
_TABLE_SHARE = 0.05  # of all weights: a smaller table is not worth its rounding


@dataclass(slots=True)
class Matrix:
    """A constant of two dimensions that only products and look-ups read.

    Attributes:
        name: Of the initializer.
        shape: Its own.
        axis: Where its output channels, or a table's rows, lie.
        is_table: Whether rows of it are looked up.
        is_head: Whether it gives the logits.
        gathers: Outputs of the nodes that look rows up.
    """

    name: str
    shape: tuple[int, int]
    axis: int
    is_table: bool = False
    is_head: bool = False
    gathers: list[str] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        """Weights of an output channel."""
        return self.shape[1 - self.axis]


def find_matrices(graph: onnx.GraphProto) -> list[Matrix]:
    """Every matrix of the graph that can be rounded on its own, in the graph's order."""
    routers = _routers(graph)
    shapes = {
        i.name: (i.dims[0], i.dims[1])
        for i in graph.initializer
        if _is_matrix(i) and i.name not in routers
    }
    readers = _readers(graph)
    vocab = _vocab_size(graph)
    table = _TABLE_SHARE * sum(prod(i.dims) for i in graph.initializer)
    found = []
    for name, shape in shapes.items():
        matrix = _matrix(name, shape, readers)
        if matrix is None:
            continue
        if matrix.is_table and (prod(shape) < table or shape[0] != vocab):
            continue
        matrix.is_head = shape[matrix.axis] == vocab and len(matrix.gathers) < len(readers[name])
        found.append(matrix)
    return found


def _matrix(
    name: str, shape: tuple[int, ...], readers: Mapping[str, list[onnx.NodeProto]]
) -> Matrix | None:
    axes = set()
    gathers = []
    for node in readers[name]:
        axis = _axis(node, name, readers)
        if axis is None:
            return None
        axes.add(axis)
        if node.op_type == "Gather":
            gathers.append(node.output[0])
    if len(axes) != 1:
        return None  # nobody reads it, or two do along different axes
    return Matrix(name, (shape[0], shape[1]), axes.pop(), bool(gathers), gathers=gathers)


def _axis(
    node: onnx.NodeProto, name: str, readers: Mapping[str, list[onnx.NodeProto]]
) -> int | None:
    """Along which axis of the constant a reader's output channels lie; None for other readers."""
    position = list(node.input).index(name)
    if node.op_type == "Gather" and position == 0 and _attribute(node, "axis", 0) == 0:
        return 0
    if node.op_type == "MatMul" and position == 1:
        return 1
    if node.op_type == "Gemm" and position == 1:
        return 0 if _attribute(node, "transB", 0) == 1 else 1
    if node.op_type == "Transpose":
        after = readers[node.output[0]]
        is_product = bool(after) and all(
            n.op_type == "MatMul" and list(n.input).index(node.output[0]) == 1 for n in after
        )
        return 0 if is_product else None
    return None


def _routers(graph: onnx.GraphProto) -> set[str]:
    """Constants of the products nearest before a choice of the greatest."""
    producers = {name: node for node in graph.node for name in node.output}
    waiting = [node.input[0] for node in graph.node if node.op_type in _CHOICES]
    seen: set[str] = set()
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        node = producers.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        if node.op_type not in _PRODUCTS:
            waiting += node.input
            continue
        weight = producers.get(node.input[1])  # a Transpose, if anything
        found |= {node.input[1], *(weight.input if weight is not None else ())}
    return found


def _readers(graph: onnx.GraphProto) -> Mapping[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers[name].append(node)
    return readers


def _vocab_size(graph: onnx.GraphProto) -> int:
    logits = next(output for output in graph.output if output.name == "logits")
    return int(logits.type.tensor_type.shape.dim[-1].dim_value)


def _is_matrix(initializer: onnx.TensorProto) -> bool:
    return len(initializer.dims) == 2 and initializer.data_type == onnx.TensorProto.FLOAT


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
