"""Which tensors of a graph are of a type: onnx's inference ends at operators it does not know."""

from onnx import GraphProto, NodeProto, TensorProto, helper

__all__ = ["FLOAT", "FloatTypes"]

FLOAT = int(TensorProto.FLOAT)

_NEVER = {
    *("Shape", "Size", "ArgMax", "ArgMin", "NonZero", "Equal", "Less", "LessOrEqual", "Greater"),
    *("GreaterOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "IsInf", "QuantizeLinear"),
}
# Where the type comes from an input that is not the first.
_FROM = {"Where": 1, "CastLike": 1, "DequantizeLinear": 1, "OneHot": 2}
_MADE = {"Cast", "Constant", "ConstantOfShape"}  # an attribute says the type
_FIRST_OUTPUT = {"TopK", "Unique", "MaxPool"}  # the others' are indices


class FloatTypes:
    """Types by name, for a graph whose nodes are in order."""

    def __init__(self, graph: GraphProto, kind: int = FLOAT) -> None:
        """Takes the graph, and the element type to look for."""
        self._kind = kind
        self._floats = {v.name for v in graph.input if v.type.tensor_type.elem_type == kind}
        self._matrices = set[str]()
        for tensor in graph.initializer:
            if tensor.data_type == kind:
                self._floats.add(tensor.name)
                if sum(dim > 1 for dim in tensor.dims) > 1:
                    self._matrices.add(tensor.name)
        for node in graph.node:
            outputs = node.output[:1] if node.op_type in _FIRST_OUTPUT else node.output
            if self._gives_float(node):
                self._floats.update(outputs)

    def is_float(self, name: str) -> bool:
        """Whether a tensor is of the type; the name of none is empty."""
        return name in self._floats

    def is_matrix(self, name: str) -> bool:
        """Whether it is a constant of two dimensions or more, not a factor or a row of angles."""
        return name in self._matrices

    def _gives_float(self, node: NodeProto) -> bool:
        op = node.op_type
        if op in _NEVER:
            return False
        if op in _MADE:
            return _made_type(node) == self._kind
        if op in _FROM:
            return node.input[_FROM[op]] in self._floats
        return bool(node.input) and node.input[0] in self._floats


def _made_type(node: NodeProto) -> int:
    """The element type that a node's own attribute says."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Cast":
        return int(found["to"])
    value = found.get("value")
    if isinstance(value, TensorProto):
        return value.data_type
    is_float = node.op_type == "ConstantOfShape" or not {"value_float", "value_floats"}.isdisjoint(
        found
    )
    return FLOAT if is_float else int(TensorProto.INT64)
