"""Finds what can be quantized in a graph: products of an activation and a constant matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from enginehouse_server.engine.graph import read_weight

__all__ = ["Group", "Layer", "find_groups", "weight_of"]


class Layer(NamedTuple):
    """A MatMul or Gemm with a constant matrix.

    Attributes:
        output: Name of its output, by which it is known.
        activation: Name of its first input, `[..., in]`.
        weight: Name of the initializer.
        is_transposed: Whether the initializer is `[out, in]` instead of `[in, out]`.
    """

    output: str
    activation: str
    weight: str
    is_transposed: bool


class Group(NamedTuple):
    """Layers that share activations or weights, and so must be scaled together."""

    layers: tuple[Layer, ...]

    @property
    def activations(self) -> list[str]:
        """Names of the layers' inputs, each once."""
        return list(dict.fromkeys(layer.activation for layer in self.layers))

    @property
    def weights(self) -> list[Layer]:
        """One layer for each initializer."""
        return list({layer.weight: layer for layer in self.layers}.values())


def find_groups(graph: onnx.GraphProto) -> list[Group]:
    """Every group of layers of the graph, in the graph's order."""
    matrices = {i.name for i in graph.initializer if _is_matrix(i)}
    layers = []
    for node in graph.node:
        is_layer = node.op_type == "MatMul" or (node.op_type == "Gemm" and _is_plain(node))
        if is_layer and node.input[1] in matrices and node.input[0] not in matrices:
            is_transposed = _attribute(node, "transB", 0) == 1
            layers.append(Layer(node.output[0], node.input[0], node.input[1], is_transposed))
    return _grouped(layers)


def weight_of(graph: onnx.GraphProto, layer: Layer, folder: Path) -> NDArray[np.float32]:
    """The layer's matrix `[in, out]`, read from the graph or its data file in `folder`."""
    initializer = next(i for i in graph.initializer if i.name == layer.weight)
    matrix = read_weight(initializer, folder).astype(np.float32)
    return matrix.T if layer.is_transposed else matrix


def _grouped(layers: Sequence[Layer]) -> list[Group]:
    """Joins layers that are connected by an activation or a weight (as ALBERT's are)."""
    group_of: dict[str, list[Layer]] = {}
    for layer in layers:
        names = ("activation", layer.activation), ("weight", layer.weight)
        near = {id(g): g for kind, name in names if (g := group_of.get(f"{kind} {name}"))}
        joined = [member for group in near.values() for member in group] + [layer]
        for member in joined:
            group_of[f"activation {member.activation}"] = joined
            group_of[f"weight {member.weight}"] = joined
    groups = {id(group): group for group in group_of.values()}
    return [Group(tuple(group)) for group in groups.values()]


def _is_matrix(initializer: onnx.TensorProto) -> bool:
    return len(initializer.dims) == 2 and initializer.data_type == onnx.TensorProto.FLOAT


def _is_plain(gemm: onnx.NodeProto) -> bool:
    alpha, beta = _attribute(gemm, "alpha", 1.0), _attribute(gemm, "beta", 1.0)
    return _attribute(gemm, "transA", 0) == 0 and alpha == 1.0 and beta == 1.0


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return float(onnx.helper.get_attribute_value(attribute))
    return default
