"""A decoder's canonical graph made ready for ONNX Runtime: attention over what is there alone.

The bodies of the graph's own two operators compute over whole slots, however few tokens are in
them. Where ONNX Runtime's GroupQueryAttention says a layer's attention, it takes the place of both:
it writes new keys and values into the slot and reads what is there. Elsewhere the operators stay,
and the attention gets a copy of the part of the slots that has tokens. On a GPU the graph also
reduces its logits (engine/graph/best.py).
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from enginehouse_server.engine.decoder import LayerGeometry
from enginehouse_server.engine.graph import add_best
from enginehouse_server.errors import PlanMismatchError

from .elements import Element, element_of
from .fusions import fuse

__all__ = ["LENGTH_INPUT", "Lowered", "lower_decoder"]

_DOMAIN = "enginehouse"  # begins every name that is added, so that none is there already
LENGTH_INPUT = f"{_DOMAIN}_longest"
_LAST_PLACES = f"{_DOMAIN}_last_places"  # of each slot, its new tokens included
_KEPT = f"{_DOMAIN}_kept"  # as LENGTH_INPUT, [1] int64
_CONTRIB = "com.microsoft"
_SINKS_INPUT = 5  # of Attention


class Lowered(NamedTuple):
    """A graph made ready.

    Attributes:
        graph: Of the same inputs and outputs as the canonical one, and one input more,
            LENGTH_INPUT, int32 without a dimension: the most tokens that a slot of the step then
            has. Caches must be given as inputs and outputs in the same memory.
        is_grouped: Whether GroupQueryAttention says every layer. LENGTH_INPUT may then be any
            number from that on to a slot's capacity, for the same answer.
        num_best: Logits to which each row is reduced; 0 if it is not.
    """

    graph: bytes
    is_grouped: bool
    num_best: int = 0


def lower_decoder(
    file: Path,
    layers: Sequence[LayerGeometry],
    grouped: Collection[Element],
    *,
    on_device: bool = False,
) -> Lowered:
    """Reads the graph and replaces its attention and caches.

    Args:
        file: The canonical graph; its large weights stay where they are.
        layers: Shape of each layer's attention.
        grouped: Types that GroupQueryAttention takes where the graph will run.
        on_device: Whether the host cannot reach its memory. Then what is no number must not get
            into a cache that attention by the graph's own operator reads: nothing times it is still
            no number, for whoever has the slot next. And the logits are reduced.

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
    element = _cache_element(graph)
    lowering = _Lowering(graph, layers, element, is_grouped=element in grouped, guards=on_device)
    nodes = list(lowering.nodes())
    del graph.node[:]
    graph.node.extend(nodes)
    fuse(graph)
    longest = helper.make_tensor_value_info(LENGTH_INPUT, TensorProto.INT32, [])
    graph.input.append(longest)
    num_best = add_best(graph) if on_device else 0
    model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    is_grouped = all(map(lowering.is_grouped, layers))
    return Lowered(model.SerializeToString(), is_grouped, num_best)


def _cache_element(graph: GraphProto) -> Element:
    [kind] = {i.type.tensor_type.elem_type for i in graph.input if i.name.startswith("past_")}
    return element_of(kind)


def _flat_name(name: str) -> str:
    return f"{_DOMAIN}_flat_{name}"


class _Lowering:
    """Replaces both operators in the order of the graph, which is that of the layers."""

    def __init__(
        self,
        graph: GraphProto,
        layers: Sequence[LayerGeometry],
        element: Element,
        *,
        is_grouped: bool,
        guards: bool,
    ) -> None:
        self._graph, self._layers, self._element = graph, layers, element
        self._is_grouped, self._guards = is_grouped, guards
        self._updates = {n.output[0]: n for n in graph.node if n.op_type == "CacheUpdate"}
        self._constants: set[str] = set()
        self._flattened: set[str] = set()  # and what else is made once

    def is_grouped(self, layer: LayerGeometry) -> bool:
        """Whether GroupQueryAttention says what the layer's attention does."""
        fits = layer.key_dim == layer.value_dim and not layer.has_slopes
        return fits and self._is_grouped

    def nodes(self) -> Iterator[NodeProto]:
        """The nodes of the lowered graph."""
        one = self._ints("one", 1, np.int32)
        yield helper.make_node("Sub", ["kv_length", one], [_LAST_PLACES])
        if not all(map(self.is_grouped, self._layers)):
            # Not otherwise: the host's number would be copied to a GPU, whose steps are then not
            # to be captured.
            first = self._ints("first", [0])
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
            yield from self._grouped(node, layer) if self.is_grouped(layer) else self._cut(node)

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
            sinks = node.input[_SINKS_INPUT]
            inputs += ["", "", "", "", f"{_DOMAIN}_typed_{sinks}"]
            if inputs[-1] not in self._flattened:
                self._flattened.add(inputs[-1])
                yield helper.make_node("Cast", [sinks], inputs[-1:], to=self._element.onnx)
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
            yield from self._update(self._updates[inputs[i]])
            yield helper.make_node("Slice", [inputs[i], first, _KEPT, places], [cut])
            inputs[i] = cut
        replaced = NodeProto()
        replaced.CopyFrom(node)
        del replaced.input[:]
        replaced.input.extend(inputs)
        yield replaced

    def _update(self, update: NodeProto) -> Iterator[NodeProto]:
        """A cache's update, with nothing in it that is no number, where that is to be kept out."""
        if not self._guards:
            yield update
            return
        new = update.input[1]
        wide, sound, found = (f"{_DOMAIN}_{kind}_{new}" for kind in ("wide", "sound", "finite"))
        if found not in self._flattened:
            self._flattened.add(found)
            none = f"{_DOMAIN}_none"
            if none not in self._constants:
                self._constants.add(none)
                zero = numpy_helper.from_array(np.array(0, np.float32), none)
                self._graph.initializer.append(zero)
            yield helper.make_node("Cast", [new], [wide], to=TensorProto.FLOAT)
            yield helper.make_node("IsNaN", [wide], [f"{wide}_nan"])
            yield helper.make_node("IsInf", [wide], [f"{wide}_inf"])
            yield helper.make_node("Or", [f"{wide}_nan", f"{wide}_inf"], [f"{wide}_bad"])
            yield helper.make_node("Where", [f"{wide}_bad", none, wide], [sound])
            yield helper.make_node("Cast", [sound], [found], to=self._element.onnx)
        guarded = NodeProto()
        guarded.CopyFrom(update)
        guarded.input[1] = found
        yield guarded

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
