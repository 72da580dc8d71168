"""A graph in fp32 as one in fp16 or bf16, whose every tensor says its own type.

TensorRT computes each operator in the type of its inputs. Products and what moves numbers go to
half precision, since they take the time and the memory; sums over many numbers, exponentials and
what follows from them stay in fp32, since fp16 overflows there and both round too much: norms,
softmax, rotary angles, masks. Casts stand where the two meet. Inputs and outputs keep their types,
but for a decoder's caches, which become half.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from enginehouse_server.errors import UnsupportedError

from .types import FLOAT, FloatTypes
from .weights import read_weight, write_graph

__all__ = ["HalfPrecision", "to_half"]

HalfPrecision = Literal["fp16", "bf16"]

_TYPES: dict[HalfPrecision, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_DTYPES: dict[int, np.dtype[np.generic]] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_DOMAIN = "enginehouse"  # also begins every name that is added, so that none is there already

# Whatever their inputs are, these compute in half precision …
_HALF = {"Attention", "CacheUpdate", "DequantizeLinear"}
# … these too, where the model's weights have a part in an input: of positions alone they make
# rotary angles …
_PRODUCTS = {"MatMul", "Gemm", "Conv", "Einsum"}
# … and these in fp32. Others follow their inputs: fp32 if one of them is.
_FLOAT = {
    *("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"),
    *("ReduceProd", "Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"),
    *("InstanceNormalization", "GroupNormalization", "BatchNormalization", "LpNormalization"),
    *("Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Sin", "Cos", "Erf", "CumSum", "Softplus"),
    *("Range", "Mod"),
}
_CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
_FLOAT_INPUTS = {"Attention": {4, 5}}  # of a decoder's operators: slopes and sinks are fp32


def to_half(source: Path, target: Path, precision: HalfPrecision) -> None:
    """Writes a graph in half precision, weights beside it; they are read one at a time.

    Args:
        source: The graph in fp32, which may have Q/DQ in it.
        target: Where the other goes.
        precision: Which half.

    Raises:
        UnsupportedError: The graph has control flow.
    """
    model = onnx.load(source, load_external_data=False)
    for node in model.graph.node:
        if node.op_type in _CONTROL_FLOW:
            raise UnsupportedError(
                f"{source} has {node.op_type} ({node.name}): a graph with control flow is not "
                f"converted to {precision}; use fp32"
            )
    conversion = _Conversion(model, _TYPES[precision])
    nodes = list(conversion.nodes())
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        if value.name in conversion.half_ports:
            value.type.tensor_type.elem_type = _TYPES[precision]
    weights = list(model.graph.initializer)
    write_graph(model, conversion.weights(weights, source.parent), target)


class _Conversion:
    """Goes through the nodes in their order, and notes in which type each tensor is at hand."""

    def __init__(self, model: ModelProto, half: int) -> None:
        self._half = half
        self._types = FloatTypes(model.graph)
        self._constants = {tensor.name for tensor in model.graph.initializer}
        self._wanted: dict[str, set[int]] = {}  # types of each float constant
        self._is_half: set[str] = set()  # tensors that were computed in half
        self._of_weights: set[str] = set()  # those, and what was computed from them
        self._casts: set[str] = set()
        self._outputs = {value.name for value in model.graph.output}
        self._graph = model.graph
        self.half_ports: set[str] = set()

    def nodes(self) -> Iterator[NodeProto]:
        """The graph's nodes and the casts among them."""
        for node in self._graph.node:
            if (node.domain, node.op_type) == (_DOMAIN, "CacheUpdate"):
                self.half_ports |= {node.input[0], node.output[0]}
                self._is_half.add(node.input[0])
        for node in self._graph.node:
            if node.op_type == "Constant" and self._types.is_float(node.output[0]):
                self._add_constant(node)
                continue
            yield from self._converted(node)

    def weights(self, initializers: Iterable[TensorProto], folder: Path) -> Iterator[TensorProto]:
        """The initializers in the types in which they are used, their values inside."""
        for tensor in initializers:
            array = read_weight(tensor, folder)
            if tensor.data_type != FLOAT:
                yield numpy_helper.from_array(array, tensor.name)
                continue
            wanted = self._wanted.get(tensor.name, {FLOAT})
            if FLOAT in wanted:
                yield numpy_helper.from_array(array, tensor.name)
            if self._half in wanted:
                yield self._rounded(array, _half_name(tensor.name))

    def _rounded(self, array: NDArray[np.generic], name: str) -> TensorProto:
        if self._half == TensorProto.FLOAT16:
            most = np.finfo(np.float16).max
            array = np.clip(array, -most, most)  # infinity would make NaN of a product with 0
        return numpy_helper.from_array(array.astype(_DTYPES[self._half]), name)

    def _add_constant(self, node: NodeProto) -> None:
        """A float constant as an initializer, so that it can be had in both types."""
        [output] = node.output
        value = helper.get_attribute_value(node.attribute[0])
        array = (
            numpy_helper.to_array(value)
            if isinstance(value, TensorProto)
            else np.array(value, np.float32)
        )
        self._constants.add(output)
        self._graph.initializer.append(numpy_helper.from_array(array, output))

    def _converted(self, node: NodeProto) -> Iterator[NodeProto]:
        floats = [i for i, name in enumerate(node.input) if self._types.is_float(name)]
        names = [node.input[i] for i in floats]
        in_half = self._computes_in_half(node, names)
        always = _FLOAT_INPUTS.get(node.op_type, set()) if node.domain == _DOMAIN else set()
        for i in floats:
            yield from self._use(node, i, in_half and i not in always)
        results = [name for name in node.output if self._types.is_float(name)]
        if in_half or not self._of_weights.isdisjoint(names):
            self._of_weights.update(results)
        if in_half:
            self._is_half.update(results)
            yield from self._with_float_outputs(node)
        else:
            yield node

    def _computes_in_half(self, node: NodeProto, names: list[str]) -> bool:
        if node.op_type in _HALF:
            return True
        if node.op_type in _FLOAT or node.op_type == "Cast" or not names:
            return False
        if node.op_type in _PRODUCTS:
            return any(n in self._of_weights or self._types.is_matrix(n) for n in names)
        if node.op_type in ("Gather", "GatherElements", "GatherND") and names[0] in self._constants:
            return self._types.is_matrix(names[0])
        variable = [name for name in names if name not in self._constants]
        return bool(variable) and all(name in self._is_half for name in variable)

    def _use(self, node: NodeProto, i: int, in_half: bool) -> Iterator[NodeProto]:
        """Lets the node have its input in a type."""
        name = node.input[i]
        if name in self._constants:
            self._wanted.setdefault(name, set()).add(self._half if in_half else FLOAT)
            if in_half:
                node.input[i] = _half_name(name)
            return
        if (name in self._is_half) == in_half:
            return
        cast = _half_name(name) if in_half else f"{_DOMAIN}_float_{name}"
        node.input[i] = cast
        if cast not in self._casts:
            self._casts.add(cast)
            yield helper.make_node(
                "Cast", [name], [cast], name=cast, to=self._half if in_half else FLOAT
            )

    def _with_float_outputs(self, node: NodeProto) -> Iterator[NodeProto]:
        """The node, and a cast of what the graph gives out in fp32."""
        casts = []
        for i, name in enumerate(node.output):
            if name in self._outputs and name not in self.half_ports and name in self._is_half:
                node.output[i] = _half_name(name)
                casts.append(
                    helper.make_node("Cast", [node.output[i]], [name], name=f"{name}_out", to=FLOAT)
                )
                self._is_half.discard(name)
        yield node
        yield from casts


def _half_name(name: str) -> str:
    return f"{_DOMAIN}_half_{name}"
