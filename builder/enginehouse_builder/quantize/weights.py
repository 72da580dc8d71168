"""A decoder's weights to int8 or int4; activations stay as they are.

A step of few tokens reads every weight and computes little with it, so its time is that of reading
them. Each matrix is kept in levels and steps, with `DequantizeLinear` in front of the product that
reads it: the form that OpenVINO, ONNX Runtime and TensorRT alike fuse into the product. In int4 the
head and the table of embeddings are int8 all the same: they lose most by fewer levels.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from enginehouse_builder.errors import QuantizeError
from enginehouse_server.engine.graph import read_weight

from .data_file import DataFile
from .levels import group_for, int4_levels, int8_levels, packed_int4
from .matrices import Matrix, find_matrices

__all__ = ["QuantizedWeights", "WeightPrecision", "quantize_weights"]

WeightPrecision = Literal["int8", "int4"]

_REPORT_EVERY = 64  # tensors


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """What became of the weights.

    Attributes:
        num_int8: Matrices in int8.
        num_int4: Matrices in int4.
        source_bytes: Of all weights before.
        target_bytes: Of all weights now.
    """

    num_int8: int
    num_int4: int
    source_bytes: int
    target_bytes: int


def quantize_weights(
    source: Path,
    target: Path,
    precision: WeightPrecision,
    report: Callable[[str], None],
    *,
    tables: bool = True,
) -> QuantizedWeights:
    """Writes the graph of `source` with rounded weights to `target`, its data beside it.

    Weights pass through memory one matrix at a time.

    Args:
        source: The canonical graph.
        target: Where the other goes.
        precision: Of the weights.
        report: Is told what goes on.
        tables: Whether what is looked up is rounded too. TensorRT takes levels in front of a
            product alone.

    Raises:
        QuantizeError: The graph has no matrix to round.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    matrices = {m.name: m for m in find_matrices(graph) if tables or not m.is_table or m.is_head}
    if not matrices:
        raise QuantizeError("the graph has no constant matrix to round: build with fp32")
    target.parent.mkdir(parents=True, exist_ok=True)
    data = target.with_name(target.name + ".data")
    formats = {name: _format(matrix, precision) for name, matrix in matrices.items()}
    kept: list[TensorProto] = []
    source_bytes = 0
    with DataFile(data) as file:
        for tensor in graph.initializer:
            array = read_weight(tensor, source.parent)
            source_bytes += array.nbytes
            matrix = matrices.get(tensor.name)
            if matrix is None or (matrix.is_table and not tables):
                file.put(tensor, array.tobytes())
                kept.append(tensor)
            if matrix is None:
                continue
            if len(kept) % _REPORT_EVERY == 0:
                report(f"rounding {tensor.name}, {source_bytes / 1e6:.1f} MB done")
            numbers = array.astype(np.float32, copy=False)
            kept += _rounded(matrix, formats[tensor.name], numbers, file)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    _rewire(graph, matrices, formats, tables=tables)
    onnx.save(model, target)
    num_int4 = sum(group is not None for group in formats.values())
    return QuantizedWeights(
        num_int8=len(formats) - num_int4,
        num_int4=num_int4,
        source_bytes=source_bytes,
        target_bytes=data.stat().st_size,
    )


def _format(matrix: Matrix, precision: WeightPrecision) -> int | None:
    """Inputs of an int4 group; None for int8."""
    if precision == "int8" or matrix.is_table or matrix.is_head:
        return None
    return group_for(matrix.num_inputs)


def _rounded(
    matrix: Matrix, group: int | None, array: NDArray[np.float32], file: DataFile
) -> Iterator[TensorProto]:
    """The levels and steps of a matrix, as constants."""
    if group is None:
        found = int8_levels(array, matrix.axis)
        kind, content = TensorProto.INT8, found.values.tobytes()
    else:
        found = int4_levels(array, matrix.axis, group)
        kind, content = TensorProto.INT4, packed_int4(found.values)
    levels = TensorProto(name=_levels(matrix.name), data_type=kind, dims=matrix.shape)
    file.put(levels, content)
    yield levels
    steps = TensorProto(
        name=_steps(matrix.name), data_type=TensorProto.FLOAT, dims=found.steps.shape
    )
    file.put(steps, found.steps.tobytes())
    yield steps


def _rewire(
    graph: onnx.GraphProto,
    matrices: Mapping[str, Matrix],
    formats: Mapping[str, int | None],
    *,
    tables: bool,
) -> None:
    """Lets products read dequantized matrices, and look-ups dequantize the rows they find."""
    looked_up = matrices.values() if tables else ()
    gathers = {output: matrix for matrix in looked_up for output in matrix.gathers}
    multiplied = {
        name
        for node in graph.node
        for name in node.input
        if name in matrices and node.op_type != "Gather"
    }
    nodes = [_dequantized(matrices[name], formats[name]) for name in sorted(multiplied)]
    for node in graph.node:
        matrix = gathers.get(node.output[0]) if node.output else None
        if matrix is not None:
            nodes += _looked_up(node, matrix)
            continue
        for i, name in enumerate(node.input):
            if name in matrices and (tables or node.op_type != "Gather"):
                node.input[i] = _dequantized_name(name)
        nodes.append(node)
    if any(name == "axis_last" for name in _inputs(nodes)):
        graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "axis_last"))
    del graph.node[:]
    graph.node.extend(nodes)


def _dequantized(matrix: Matrix, group: int | None) -> NodeProto:
    name = _dequantized_name(matrix.name)
    inputs = [_levels(matrix.name), _steps(matrix.name)]
    if group is None:
        return helper.make_node("DequantizeLinear", inputs, [name], name=name, axis=matrix.axis)
    return helper.make_node(
        "DequantizeLinear", inputs, [name], name=name, axis=1 - matrix.axis, block_size=group
    )


def _looked_up(node: NodeProto, matrix: Matrix) -> list[NodeProto]:
    """Dequantizes after the look-up: no runtime need do so with the whole table."""
    out, ids = node.output[0], node.input[1]

    node_of = helper.make_node
    return [
        node_of("Gather", [_levels(matrix.name), ids], [f"{out}.levels"], axis=0),
        node_of("Cast", [f"{out}.levels"], [f"{out}.float"], to=TensorProto.FLOAT),
        node_of("Gather", [_steps(matrix.name), ids], [f"{out}.step"], axis=0),
        node_of("Unsqueeze", [f"{out}.step", "axis_last"], [f"{out}.steps"]),
        node_of("Mul", [f"{out}.float", f"{out}.steps"], [out]),
    ]


def _inputs(nodes: Iterable[NodeProto]) -> Iterator[str]:
    return (name for node in nodes for name in node.input)


def _levels(name: str) -> str:
    return f"{name}.levels"


def _steps(name: str) -> str:
    return f"{name}.steps"


def _dequantized_name(name: str) -> str:
    return f"{name}.rounded"
