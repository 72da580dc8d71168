"""Products of experts in a graph, written out: a Split by counts, a MatMul an expert, a Concat.

Nothing but standard operators on matrices of two dimensions, which is what rounding of weights and
every runtime know best: weights stay compressed, and empty parts cost next to nothing.

On OpenVINO 2026.4 (two cores, fp32 and int8; 8 of 64 experts of 512 by 256, and 2 of 8 of 512 by
1024) 512 tokens take 0.9 to 2.1 times the time of as many rows through one dense layer. Gathering
matrices for each row (OpenVINO's own GatherMatmul) takes 3 to 17 times as long as the dense layer,
asking every expert (fp32) 4 to 8 times. Steps of 8 and 16 tokens take 0.4 to 2.3 times what
GatherMatmul takes, a single token 0.9 to 2 times in fp32 and up to 6 where small experts are int8.
At 8 of 128 experts of 2048 by 768 in int8: 512 tokens 3.5 times the dense layer (GatherMatmul 15),
8 and 16 tokens 1.1 to 1.7 times GatherMatmul, one token, most of whose products are empty, 1.8 to
2.7 times.
"""

import numpy as np
import onnx_ir
from onnx_ir import convenience

from enginehouse_builder.errors import UnsupportedModelError

from .experts import PRODUCT
from .operators import DOMAIN

__all__ = ["write_out_products"]


def write_out_products(graph: onnx_ir.Graph, num_wanted: int) -> None:
    """Replaces every product of experts by operators of the standard.

    Args:
        graph: As it was traced.
        num_wanted: Products that the model has, each with weights of its own.

    Raises:
        UnsupportedModelError: The trace has others.
    """
    products = [node for node in graph if (node.domain, node.op_type) == (DOMAIN, PRODUCT)]
    weights = {_input(node, 2).name for node in products}
    if len(products) != num_wanted or len(weights) != num_wanted:
        raise UnsupportedModelError(
            f"of the {num_wanted} products that its experts make {len(weights)} are in its graph: "
            "its experts are not computed by the interface that can be replaced"
        )
    for node in products:
        _write_out(graph, node)


def _write_out(graph: onnx_ir.Graph, product: onnx_ir.Node) -> None:
    weight, result = _input(product, 2), product.outputs[0]
    matrices = _matrices(graph, weight, product.attributes["is_transposed"].as_int() == 1)
    split = onnx_ir.node(
        "Split",
        [_input(product, 0), _input(product, 1)],
        {"axis": 0},
        num_outputs=len(matrices),
        name=f"{result.name}.parts",
    )
    multiplied = [
        onnx_ir.node("MatMul", [part, matrix], name=f"{result.name}.{i}")
        for i, (part, matrix) in enumerate(zip(split.outputs, matrices, strict=True))
    ]
    for i, (part, node) in enumerate(zip(split.outputs, multiplied, strict=True)):
        part.name, node.outputs[0].name = f"{result.name}.part.{i}", f"{result.name}.product.{i}"
    joined = onnx_ir.node(
        "Concat", [node.outputs[0] for node in multiplied], {"axis": 0}, name=f"{result.name}.whole"
    )
    convenience.replace_nodes_and_values(
        graph, product, [product], [split, *multiplied, joined], [result], [joined.outputs[0]]
    )
    if not weight.uses():
        del graph.initializers[str(weight.name)]


def _matrices(
    graph: onnx_ir.Graph, weight: onnx_ir.Value, is_transposed: bool
) -> list[onnx_ir.Value]:
    """The experts' matrices `[in, out]`, made when they are written to a file."""
    tensor = weight.const_value
    assert tensor is not None, "the weights of experts are parameters"
    whole = tensor.numpy()
    found = []
    for i, matrix in enumerate(whole if is_transposed else whole.transpose(0, 2, 1)):
        value = onnx_ir.Value(
            name=f"{weight.name}.{i}",
            shape=onnx_ir.Shape(matrix.shape),
            type=onnx_ir.TensorType(tensor.dtype),
            const_value=_lazy(matrix, tensor.dtype, f"{weight.name}.{i}"),
        )
        graph.register_initializer(value)
        found.append(value)
    return found


def _lazy(matrix: np.ndarray, dtype: onnx_ir.DataType, name: str) -> onnx_ir.LazyTensor:
    return onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(np.ascontiguousarray(matrix), name=name),
        dtype=dtype,
        shape=onnx_ir.Shape(matrix.shape),
        name=name,
    )


def _input(node: onnx_ir.Node, index: int) -> onnx_ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
