"""A decoder's canonical graph in TensorRT's own layers: caches updated in place, fused attention.

`enginehouse::CacheUpdate` and `Attention` become `TRT_KVCacheUpdate` and `TRT_Attention`, which the
parser knows. A standard Attention would be parsed wrongly: its lengths are dropped and its causal
mask is turned upper left. What the fused layer cannot say, or has no kernel for, is a mask, or
written out in standard operators. The two have bodies of standard operators in the file, so that
the very same graph also runs on ONNX Runtime. For a device the lowered graph also reduces its
logits (engine/graph/best.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from numpy.typing import DTypeLike
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from enginehouse_server.engine.decoder import LayerGeometry
from enginehouse_server.engine.graph import add_best
from enginehouse_server.errors import PlanMismatchError

from .plan import slot_capacity

__all__ = ["DOMAIN", "Lowered", "lower_decoder"]

DOMAIN = "trt"
_OURS = "enginehouse"  # also begins every name that is added, so that none is there already
_OPSET = 24
_FLOAT = int(TensorProto.FLOAT)
_SLOPES, _SINKS = 4, 5  # inputs of Attention
_HIDDEN = -1e30  # a score without weight; finite, so that no row becomes NaN
_HIDDEN_FP16 = -6e4
# Heads of other widths, 10 or 100, end TensorRT-RTX 1.7.1 with an exception of its compiler.
_FUSED_WIDTH = 8


@dataclass(frozen=True, slots=True)
class Lowered:
    """What a lowered graph has.

    Attributes:
        num_attentions: Fused attentions.
        num_caches: Caches, updated in place.
    """

    num_attentions: int
    num_caches: int


def lower_decoder(
    file: Path,
    target: Path,
    layers: Sequence[LayerGeometry],
    max_tokens: int,
    *,
    reduces: bool = True,
) -> Lowered:
    """Writes the lowered graph; weights stay in the file that has them, which is linked beside it.

    Args:
        file: The canonical graph, in the precision of the plan.
        target: Where the lowered one goes, in a folder of the same disk.
        layers: Shape of each layer's attention.
        max_tokens: Longest sequence: it makes the capacity of the slots, which is fixed.
        reduces: Whether the graph is to reduce its logits: of use where they are not the host's.

    Raises:
        PlanMismatchError: The file is not such a graph.
    """
    model = onnx.load(file, load_external_data=False)
    attentions = [n for n in model.graph.node if (n.domain, n.op_type) == (_OURS, "Attention")]
    if len(attentions) != len(layers):
        raise PlanMismatchError(
            f"{file} has {len(attentions)} attentions, its manifest says {len(layers)} layers: "
            "build the model again"
        )
    lowering = _Lowering(model, layers)
    nodes = list(lowering.nodes())
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if reduces:
        add_best(model.graph)
    _fix_capacity(model, slot_capacity(max_tokens))
    del model.functions[:]
    model.functions.extend(onnx.parser.parse_function(text) for text in (_ATTENTION, _UPDATE))
    for opset in list(model.opset_import):
        if opset.domain == _OURS:
            model.opset_import.remove(opset)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    target.write_bytes(model.SerializeToString())
    _link_weights(model, file.parent, target.parent)
    return Lowered(lowering.num_attentions, lowering.num_caches)


def _fix_capacity(model: ModelProto, capacity: int) -> None:
    """A cache that is updated in place has a fixed size, but for the number of its slots."""
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_", "present_")):
            value.type.tensor_type.shape.dim[2].dim_value = capacity


def _link_weights(model: ModelProto, source: Path, folder: Path) -> None:
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in names:
        link = folder / name
        if folder.resolve() != source.resolve() and not link.exists():
            link.hardlink_to((source / name).resolve())


class _Lowering:
    """Replaces both operators in the order of the graph, which is that of the layers."""

    def __init__(self, model: ModelProto, layers: Sequence[LayerGeometry]) -> None:
        self._graph = model.graph
        self._layers = layers
        self._constants: set[str] = set()
        self._types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
        self._masks: set[str] = set()
        self.num_attentions = self.num_caches = 0

    def nodes(self) -> Iterator[NodeProto]:
        layers = iter(self._layers)
        cache_types = {}
        for node in self._graph.node:
            if node.domain != _OURS:
                yield node
            elif node.op_type == "CacheUpdate":
                self.num_caches += 1
                cache_types[node.output[0]] = self._types[node.input[0]]
                node.domain, node.op_type = DOMAIN, "TRT_KVCacheUpdate"
                yield node
            else:
                layer = next(layers)
                yield from self._attention(node, layer, cache_types[node.input[1]])

    def _attention(self, node: NodeProto, layer: LayerGeometry, dtype: int) -> Iterator[NodeProto]:
        inputs = [*node.input, "", ""]
        query, key, value, length = inputs[:4]
        if not _is_fused(layer):
            yield from self._written_out(node, layer, dtype)
            return
        self.num_attentions += 1
        mask = ""
        if layer.has_slopes:
            mask = f"{_OURS}_bias_{node.output[0]}"
            yield from self._bias(query, key, length, layer.window, inputs[_SLOPES], dtype, mask)
        elif layer.window:
            mask = f"{_OURS}_seen_{layer.window}"
            yield from self._seen(query, key, length, layer.window, mask)
        kind = "none" if mask else "lower_right"
        yield helper.make_node(
            "TRT_Attention",
            [query, key, value, mask, "", length],
            list(node.output),
            name=node.name or node.output[0],
            domain=DOMAIN,
            causal_kind=kind,
            TRT_decomposable=1,
            is_causal=int(not mask),  # for the body, which cannot read a word
        )

    def _distance(self, query: str, key: str, length: str) -> Iterator[NodeProto]:
        """How far each key is behind each query, `[batch, 1, length, capacity]` int64; once."""
        if self._once("distance"):
            return
        zero, one, first = self._ints("zero", 0), self._ints("one", 1), self._ints("first", [0])
        yield self._node("Shape", [query], "num_new_1d", start=2, end=3)
        yield self._node("Squeeze", [f"{_OURS}_num_new_1d", first], "num_new")
        yield self._node("Range", [zero, f"{_OURS}_num_new", one], "new")
        yield self._node("Shape", [key], "capacity_1d", start=2, end=3)
        yield self._node("Squeeze", [f"{_OURS}_capacity_1d", first], "capacity")
        yield self._node("Range", [zero, f"{_OURS}_capacity", one], "columns")
        yield self._node("Cast", [length], "length", to=TensorProto.INT64)
        yield self._node("Sub", [f"{_OURS}_length", f"{_OURS}_num_new_1d"], "starts")
        ends = self._ints("ends", [1, 2, 3])
        yield self._node("Unsqueeze", [f"{_OURS}_starts", ends], "start_rows")
        second = self._ints("second", [1])
        yield self._node("Unsqueeze", [f"{_OURS}_new", second], "new_rows")
        yield self._node("Add", [f"{_OURS}_start_rows", f"{_OURS}_new_rows"], "positions")
        yield self._node("Sub", [f"{_OURS}_positions", f"{_OURS}_columns"], "distance")

    def _seen(
        self, query: str, key: str, length: str, window: int, mask: str
    ) -> Iterator[NodeProto]:
        """Which keys a query sees, bool, once for all layers of one window."""
        yield from self._distance(query, key, length)
        if mask in self._masks:
            return
        self._masks.add(mask)
        zero = self._ints("zero", 0)
        past = f"{mask}_past" if window else mask
        yield helper.make_node("GreaterOrEqual", [f"{_OURS}_distance", zero], [past])
        if window:
            size = self._ints(f"window_{window}", window)
            yield helper.make_node("Less", [f"{_OURS}_distance", size], [f"{mask}_near"])
            yield helper.make_node("And", [past, f"{mask}_near"], [mask])

    def _bias(
        self, query: str, key: str, length: str, window: int, slopes: str, dtype: int, mask: str
    ) -> Iterator[NodeProto]:
        """What is added to scores, in their type: less for each place behind, and the mask."""
        seen = f"{_OURS}_seen_{window}"
        yield from self._seen(query, key, length, window, seen)
        if not self._once("behind"):
            yield self._node("Neg", [f"{_OURS}_distance"], "behind_int")
            yield self._node("Cast", [f"{_OURS}_behind_int"], "behind", to=TensorProto.FLOAT)
        inner = self._ints("inner", [1, 2])
        is_fp16 = dtype == TensorProto.FLOAT16
        hidden = (
            self._floats("hidden_fp16", _HIDDEN_FP16)
            if is_fp16
            else self._floats("hidden", _HIDDEN)
        )
        yield helper.make_node("Unsqueeze", [slopes, inner], [f"{mask}_slopes"])
        yield helper.make_node("Mul", [f"{mask}_slopes", f"{_OURS}_behind"], [f"{mask}_all"])
        yield helper.make_node("Where", [seen, f"{mask}_all", hidden], [f"{mask}_float"])
        yield helper.make_node("Cast", [f"{mask}_float"], [mask], to=dtype)

    def _written_out(
        self, node: NodeProto, layer: LayerGeometry, dtype: int
    ) -> Iterator[NodeProto]:
        """Attention in standard operators, scores in fp32, heads by the keys that they share."""
        inputs = [*node.input, "", ""]
        query, key, value, length = inputs[:4]
        name, seen = f"{_OURS}_{node.output[0]}", f"{_OURS}_seen_{layer.window}"
        yield from self._scores(name, query, key, layer)
        scores = f"{name}_scores"
        if layer.softcap:
            cap = self._floats(f"softcap_{layer.softcap}", layer.softcap)
            yield helper.make_node("Div", [scores, cap], [f"{name}_small"])
            yield helper.make_node("Tanh", [f"{name}_small"], [f"{name}_bounded"])
            scores = f"{name}_capped"
            yield helper.make_node("Mul", [f"{name}_bounded", cap], [scores])
        if layer.has_slopes:
            bias, slopes = f"{name}_bias", inputs[_SLOPES]
            yield from self._bias(query, key, length, layer.window, slopes, _FLOAT, bias)
            yield helper.make_node("Add", [scores, bias], [f"{name}_biased"])
            scores = f"{name}_biased"
        yield from self._seen(query, key, length, layer.window, seen)
        hidden = self._floats("hidden", _HIDDEN)
        yield helper.make_node("Where", [seen, scores, hidden], [f"{name}_masked"])
        if layer.has_sinks:
            yield from self._softmax_with_sinks(name, inputs[_SINKS])
        else:
            yield helper.make_node("Softmax", [f"{name}_masked"], [f"{name}_weights"], axis=-1)
        joined = [0, layer.num_heads, -1, layer.value_dim]
        shape = self._ints("joined_" + "_".join(map(str, joined)), joined)
        yield helper.make_node("Cast", [f"{name}_weights"], [f"{name}_share"], to=dtype)
        yield helper.make_node("Reshape", [f"{name}_share", f"{name}_sizes"], [f"{name}_shares"])
        yield helper.make_node("Unsqueeze", [value, self._ints("third", [2])], [f"{name}_values"])
        yield helper.make_node("MatMul", [f"{name}_shares", f"{name}_values"], [f"{name}_sum"])
        yield helper.make_node("Reshape", [f"{name}_sum", shape], list(node.output))

    def _scores(self, name: str, query: str, key: str, layer: LayerGeometry) -> Iterator[NodeProto]:
        """`[batch, heads, length, capacity]` fp32, and the sizes that they were grouped in."""
        groups = [0, layer.num_kv_heads, layer.num_heads // layer.num_kv_heads, -1, layer.key_dim]
        shape = self._ints("groups_" + "_".join(map(str, groups)), groups)
        heads = self._ints(f"heads_{layer.num_heads}", [layer.num_heads])
        third, turned = self._ints("third", [2]), [0, 1, 2, 4, 3]
        grouped = f"{name}_grouped"
        yield helper.make_node("Reshape", [query, shape], [f"{name}_query"])
        yield helper.make_node("Unsqueeze", [key, third], [f"{name}_keys"])
        yield helper.make_node("Transpose", [f"{name}_keys"], [f"{name}_turned"], perm=turned)
        yield helper.make_node("MatMul", [f"{name}_query", f"{name}_turned"], [f"{name}_products"])
        yield helper.make_node("Cast", [f"{name}_products"], [grouped], to=_FLOAT)
        yield helper.make_node("Shape", [grouped], [f"{name}_sizes"])
        yield helper.make_node("Shape", [grouped], [f"{name}_batch"], start=0, end=1)
        yield helper.make_node("Shape", [grouped], [f"{name}_rows"], start=3, end=5)
        parts = [f"{name}_batch", heads, f"{name}_rows"]
        yield helper.make_node("Concat", parts, [f"{name}_joined"], axis=0)
        yield helper.make_node("Reshape", [grouped, f"{name}_joined"], [f"{name}_scores"])

    def _softmax_with_sinks(self, name: str, sinks: str) -> Iterator[NodeProto]:
        """Softmax over the scores and one logit more of each head, which has no value."""
        masked, inner, last = (
            f"{name}_masked",
            self._ints("inner", [1, 2]),
            self._ints("last", [-1]),
        )
        yield helper.make_node("Unsqueeze", [sinks, inner], [f"{name}_sink"])
        yield helper.make_node("ReduceMax", [masked, last], [f"{name}_most"], keepdims=1)
        yield helper.make_node("Max", [f"{name}_most", f"{name}_sink"], [f"{name}_top"])
        yield helper.make_node("Sub", [masked, f"{name}_top"], [f"{name}_below"])
        yield helper.make_node("Exp", [f"{name}_below"], [f"{name}_exp"])
        yield helper.make_node("ReduceSum", [f"{name}_exp", last], [f"{name}_total"], keepdims=1)
        yield helper.make_node("Sub", [f"{name}_sink", f"{name}_top"], [f"{name}_sink_below"])
        yield helper.make_node("Exp", [f"{name}_sink_below"], [f"{name}_sink_exp"])
        yield helper.make_node("Add", [f"{name}_total", f"{name}_sink_exp"], [f"{name}_whole"])
        yield helper.make_node("Div", [f"{name}_exp", f"{name}_whole"], [f"{name}_weights"])

    def _once(self, what: str) -> bool:
        """Whether it was made before; from now on it was."""
        if what in self._masks:
            return True
        self._masks.add(what)
        return False

    def _node(self, op: str, inputs: list[str], output: str, **attributes: int) -> NodeProto:
        node = helper.make_node(op, inputs, [f"{_OURS}_{output}"])
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        return node

    def _ints(self, name: str, value: int | list[int]) -> str:
        return self._constant(name, value, np.int64)

    def _floats(self, name: str, value: float) -> str:
        return self._constant(name, value, np.float32)

    def _constant(self, name: str, value: float | list[int], dtype: DTypeLike) -> str:
        """The name of a constant, made at its first use."""
        name = f"{_OURS}_{name}"
        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name


def _is_fused(layer: LayerGeometry) -> bool:
    """Whether the fused layer can say it and has a kernel for it."""
    is_said = not (layer.softcap or layer.has_sinks) and layer.key_dim == layer.value_dim
    return is_said and layer.key_dim % _FUSED_WIDTH == 0


_ATTENTION = f"""
<domain: "{DOMAIN}", opset_import: ["" : {_OPSET}]>
TRT_Attention <is_causal> (query, key, value, mask, query_lengths, kv_lengths) => (output)
{{
    lengths = Cast <to = 7> (kv_lengths)
    output = Attention <is_causal: int = @is_causal, scale = 1.0>
        (query, key, value, mask, , , lengths)
}}
"""
_UPDATE = f"""
<domain: "{DOMAIN}", opset_import: ["" : {_OPSET}]>
TRT_KVCacheUpdate (cache, update, write_index) => (output)
{{
    index = Cast <to = 7> (write_index)
    output = TensorScatter <axis = -2> (cache, update, index)
}}
"""
