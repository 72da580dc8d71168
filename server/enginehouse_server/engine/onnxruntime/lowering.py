"""A decoder's canonical graph made ready for ONNX Runtime: attention over what is there alone.

The bodies of the graph's own two operators compute over whole slots, however few tokens are in
them. Where ONNX Runtime's GroupQueryAttention says a layer's attention, it takes the place of both:
it writes new keys and values into the slot and reads what is there. Elsewhere the operators stay,
and the attention gets a copy of the part of the slots that has tokens.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from enginehouse_server.engine.decoder import LayerGeometry
from enginehouse_server.errors import PlanMismatchError

__all__ = ["LENGTH_INPUT", "lower_decoder"]

_DOMAIN = "enginehouse"  # begins every name that is added, so that none is there already
LENGTH_INPUT = f"{_DOMAIN}_longest"
_LAST_PLACES = f"{_DOMAIN}_last_places"  # of each slot, its new tokens included
_KEPT = f"{_DOMAIN}_kept"  # as LENGTH_INPUT, [1] int64
_CONTRIB = "com.microsoft"
_SINKS_INPUT = 5  # of Attention


def lower_decoder(file: Path, layers: Sequence[LayerGeometry]) -> bytes:
    """Reads the graph and replaces its attention and caches.

    Args:
        file: The canonical graph; its large weights stay where they are.
        layers: Shape of each layer's attention.

    Returns:
        A graph of the same inputs and outputs, and one input more, LENGTH_INPUT, int32 without a
        dimension: the most tokens that a slot of the step then has. Caches must be given as inputs
        and outputs in the same memory.

    Raises:
        PlanMismatchError: The file is not such a graph.
    """
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf has a class for every kind
        raise PlanMismatchError(f"ONNX Runtime cannot read {file}: {error}") from error
    graph = model.graph
    attentions = [n for n in graph.node if (n.domain, n.op_type) == (_DOMAIN, "Attention")]
    if len(attentions) != len(layers):
        raise PlanMismatchError(
            f"{file} has {len(attentions)} attentions, its manifest says {len(layers)} layers: "
            "build the model again"
        )
    nodes = list(_Lowering(graph, layers).nodes())
    del graph.node[:]
    graph.node.extend(nodes)
    longest = helper.make_tensor_value_info(LENGTH_INPUT, TensorProto.INT32, [])
    graph.input.append(longest)
    model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    return model.SerializeToString()


def _is_grouped(layer: LayerGeometry) -> bool:
    """Whether GroupQueryAttention says what the layer's attention does."""
    return layer.key_dim == layer.value_dim and not layer.has_slopes


def _flat_name(name: str) -> str:
    return f"{_DOMAIN}_flat_{name}"


class _Lowering:
    """Replaces both operators in the order of the graph, which is that of the layers."""

    def __init__(self, graph: GraphProto, layers: Sequence[LayerGeometry]) -> None:
        self._graph = graph
        self._layers = layers
        self._updates = {n.output[0]: n for n in graph.node if n.op_type == "CacheUpdate"}
        self._constants: set[str] = set()
        self._flattened: set[str] = set()

    def nodes(self) -> Iterator[NodeProto]:
        one, first = self._ints("one", 1, np.int32), self._ints("first", [0])
        yield helper.make_node("Sub", ["kv_length", one], [_LAST_PLACES])
        yield helper.make_node("Unsqueeze", [LENGTH_INPUT, first], [f"{_KEPT}_int32"])
        yield helper.make_node("Cast", [f"{_KEPT}_int32"], [_KEPT], to=TensorProto.INT64)
        layers = iter(self._layers)
        for node in self._graph.node:
            if (node.domain, node.op_type) == (_DOMAIN, "CacheUpdate"):
                continue  # comes with the attention that reads it
            if (node.domain, node.op_type) != (_DOMAIN, "Attention"):
                yield node
                continue
            layer = next(layers)
            yield from self._grouped(node, layer) if _is_grouped(layer) else self._cut(node)

    def _grouped(self, node: NodeProto, layer: LayerGeometry) -> Iterator[NodeProto]:
        query, key, value = node.input[:3]
        past_key, new_key, _ = self._updates[key].input
        past_value, new_value, _ = self._updates[value].input
        yield from self._flat(query, layer.num_heads * layer.key_dim)
        yield from self._flat(new_key, layer.num_kv_heads * layer.key_dim)
        yield from self._flat(new_value, layer.num_kv_heads * layer.key_dim)
        inputs = [*map(_flat_name, (query, new_key, new_value)), past_key, past_value]
        inputs += [_LAST_PLACES, LENGTH_INPUT]
        if len(node.input) > _SINKS_INPUT:
            inputs += ["", "", "", "", node.input[_SINKS_INPUT]]
        [output] = node.output
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        yield helper.make_node(
            "GroupQueryAttention",
            inputs,
            [_flat_name(output), key, value],
            domain=_CONTRIB,
            num_heads=layer.num_heads,
            kv_num_heads=layer.num_kv_heads,
            scale=1.0,  # it is in the query
            local_window_size=attributes["window"] or -1,
            softcap=attributes.get("softcap", 0.0),
        )
        sizes = [0, 0, layer.num_heads, layer.key_dim]
        shape = self._ints("heads_" + "_".join(map(str, sizes)), sizes)
        rows = f"{_flat_name(output)}_heads"
        yield helper.make_node("Reshape", [_flat_name(output), shape], [rows])
        yield helper.make_node("Transpose", [rows], [output], perm=[0, 2, 1, 3])

    def _cut(self, node: NodeProto) -> Iterator[NodeProto]:
        first, places = self._ints("first", [0]), self._ints("places", [2])
        inputs = list(node.input)
        for i in (1, 2):
            cut = f"{_DOMAIN}_cut_{inputs[i]}"
            yield self._updates[inputs[i]]
            yield helper.make_node("Slice", [inputs[i], first, _KEPT, places], [cut])
            inputs[i] = cut
        replaced = NodeProto()
        replaced.CopyFrom(node)
        del replaced.input[:]
        replaced.input.extend(inputs)
        yield replaced

    def _flat(self, name: str, width: int) -> Iterator[NodeProto]:
        """`[batch, heads, length, dim]` as `[batch, length, heads * dim]`."""
        if name in self._flattened:
            return
        self._flattened.add(name)
        flat, shape = _flat_name(name), self._ints(f"flat_{width}", [0, 0, width])
        yield helper.make_node("Transpose", [name], [f"{flat}_rows"], perm=[0, 2, 1, 3])
        yield helper.make_node("Reshape", [f"{flat}_rows", shape], [flat])

    def _ints(self, name: str, value: int | list[int], dtype: DTypeLike = np.int64) -> str:
        """The name of a constant, made at its first use."""
        name = f"{_DOMAIN}_{name}"
        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name
