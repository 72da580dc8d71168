"""Writes the quantized graph: Q/DQ on the activations, eight bits and DQ in place of the matrices.

The form is the one that OpenVINO, ONNX Runtime and TensorRT alike turn into integer products:
symmetric, a step for each activation, a step for each output channel of a matrix. Eight bits are
int8, or floats of four bits of exponent and three of mantissa (FLOAT8E4M3FN), whose greatest is the
greatest that was calibrated too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from enginehouse_server.engine.graph import read_weight

from .data_file import DataFile
from .layers import Group, Layer, weight_of
from .levels import EightBits
from .scales import Scales, quantize_matrix

__all__ = ["rewrite"]


class _Added(NamedTuple):
    """Nodes and the constants that they read."""

    nodes: list[NodeProto]
    constants: list[TensorProto]


class _Format(NamedTuple):
    """Numbers of eight bits.

    Attributes:
        name: For what is added to the graph.
        dtype: Of the numbers.
        step: Of these numbers, by that of int8 levels of the same range.
    """

    name: EightBits
    dtype: np.dtype[np.generic]
    step: np.float32


_FORMATS: Mapping[EightBits, _Format] = {
    "int8": _Format("int8", np.dtype(np.int8), np.float32(1)),
    "fp8": _Format("fp8", np.dtype(ml_dtypes.float8_e4m3fn), np.float32(127 / 448)),
}


def rewrite(
    source: Path, plan: Mapping[Group, Scales], target: Path, precision: EightBits = "int8"
) -> None:
    """Writes the graph of `source` with the groups quantized to `target` and `target`.data.

    Weights pass through memory one at a time, except the quantized ones.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    first: list[NodeProto] = []
    after: dict[str, list[NodeProto]] = {}  # by the tensor that the nodes read
    constants: list[TensorProto] = []
    bits = _FORMATS[precision]
    for group, scales in plan.items():
        for layer in group.weights:
            added = _dequantized_weight(graph, layer, scales, source.parent, bits)
            first += added.nodes
            constants += added.constants
        for name in group.activations:
            added = _quantized_activation(name, scales, bits)
            after[name] = added.nodes
            constants += added.constants
    layers = {layer.output: layer for group in plan for layer in group.layers}
    nodes = [*first, *_rewired(graph, layers, after)]
    del graph.node[:]
    graph.node.extend(nodes)
    _keep_read(graph)
    graph.initializer.extend(constants)
    _write_data(graph, source.parent, target.with_name(target.name + ".data"))
    onnx.save(model, target)


def _dequantized_weight(
    graph: onnx.GraphProto, layer: Layer, scales: Scales, folder: Path, bits: _Format
) -> _Added:
    matrix = weight_of(graph, layer, folder) * scales.divisor[:, None]
    levels, steps = quantize_matrix(matrix)
    steps *= bits.step
    quantized = levels if bits.name == "int8" else (matrix / steps).astype(bits.dtype)
    values = {
        f"{layer.weight}.{bits.name}": quantized.T if layer.is_transposed else quantized,
        f"{layer.weight}.step": steps,
        f"{layer.weight}.zero": np.zeros(len(steps), bits.dtype),
    }
    node = helper.make_node(
        "DequantizeLinear",
        list(values),
        [_rounded(layer.weight)],
        name=_rounded(layer.weight),
        axis=0 if layer.is_transposed else 1,
    )
    return _Added([node], _constants(values))


def _quantized_activation(name: str, scales: Scales, bits: _Format) -> _Added:
    values: dict[str, object] = {
        f"{name}.factor": 1 / scales.divisor,
        f"{name}.step": np.float32(scales.step) * bits.step,
        f"{name}.zero": np.zeros((), bits.dtype),
    }
    factor, *parameters = values
    divided, levels = f"{name}.divided", f"{name}.{bits.name}"
    nodes = [
        helper.make_node("Mul", [name, factor], [divided], name=divided),
        helper.make_node("QuantizeLinear", [divided, *parameters], [levels], name=levels),
        helper.make_node(
            "DequantizeLinear", [levels, *parameters], [_rounded(name)], name=_rounded(name)
        ),
    ]
    return _Added(nodes, _constants(values))


def _rounded(name: str) -> str:
    return f"{name}.rounded"


def _constants(values: Mapping[str, object]) -> list[TensorProto]:
    return [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in values.items()]


def _rewired(
    graph: onnx.GraphProto, layers: Mapping[str, Layer], after: Mapping[str, list[NodeProto]]
) -> Iterator[NodeProto]:
    for node in graph.node:
        layer = layers.get(node.output[0]) if node.output else None
        if layer is not None:
            node.input[0], node.input[1] = _rounded(layer.activation), _rounded(layer.weight)
        yield node
        for name in node.output:
            yield from after.get(name, [])


def _keep_read(graph: onnx.GraphProto) -> None:
    """Drops the matrices that are int8 now, unless something else reads them."""
    read = set(_read(graph))
    kept = [i for i in graph.initializer if i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that nodes read, also those in the bodies of If, Loop and Scan."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _read(body)
                yield from (output.name for output in body.output)


def _write_data(graph: onnx.GraphProto, folder: Path, data: Path) -> None:
    """Writes all tensors, also those that lie in `folder`, to the data file."""
    with DataFile(data) as file:
        for tensor in graph.initializer:
            file.put(tensor, read_weight(tensor, folder).tobytes())
