"""Says by one operator of ONNX Runtime what a decoder's canonical graph says by many.

A step of few tokens takes as long as its kernels are many, on a GPU most of all. ONNX Runtime finds
layer normalizations by itself; the two here it would not find in this form.

- Root mean square normalization (Zhang and Sennrich 2019, arXiv:1910.07467): eight operators, and
  in half precision two casts, become SimplifiedLayerNormalization, which computes in fp32 inside.
- Rotary positions (Su et al. 2021, arXiv:2104.09864) of the form that turns halves: seven operators
  become RotaryEmbedding, in the precision that the graph turns in.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["fuse"]

_CONTRIB = "com.microsoft"
_OURS = "enginehouse_fused"  # begins every name that is added, so that none is there already
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_POSITIONS = f"{_OURS}_positions"  # number of each token of the step, `[batch, length]`
# How axes of `[batch, heads, length, dim]` are said.
_NEGATIVE_LAST, _LAST_OF_HEADS = -1, 3
_HEADS_AXES = (1, -3)


def fuse(graph: GraphProto) -> None:
    """Replaces both, in place, wherever they are said in the form that exports have."""
    fusion = _Fusion(graph)
    nodes = list(_used(list(fusion.nodes()), [o.name for o in graph.output]))
    del graph.node[:]
    graph.node.extend(nodes)


class _Fusion:
    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._constants = {i.name: i for i in graph.initializer}
        self._makers = {o: node for node in graph.node for o in node.output}
        names = (name for node in graph.node for name in node.input)
        self._num_readers = Counter([*names, *(o.name for o in graph.output)])
        self._readers = {name: node for node in graph.node for name in node.input}
        self._made: set[str] = set()  # of what is added: outputs

    def nodes(self) -> Iterator[NodeProto]:
        """The graph's nodes; what they replace is still among them where it is not read."""
        for node in self._graph.node:
            if self._made.intersection(node.output):
                continue  # a cast that went with what it cast
            if node.op_type == "Mul":
                yield from self._norm(node) or [node]
            elif node.op_type == "Add":
                yield from self._rotary(node) or [node]
            else:
                yield node

    def _norm(self, scaled: NodeProto) -> Sequence[NodeProto]:
        """In place of the product by the weights, which is the last operator."""
        match [n for n in scaled.input if n in self._constants], self._only(scaled, "Mul"):
            case [weight], NodeProto() as normed if len(self._constants[weight].dims) == 1:
                pass
            case _:
                return []
        root = self._only(normed, "Reciprocal")
        sums = self._chain(root, "Sqrt", "Add", "ReduceMean", "Pow")
        if root is None or len(sums) < 4:
            return []
        _, shifted, mean, power = sums
        [source] = [n for n in normed.input if n not in root.output] or [""]
        epsilon = self._scalar(shifted)
        axes = self._value(mean.input[1]) if len(mean.input) > 1 else None
        if (
            power.input[0] != source
            or self._scalar(power) != 2
            or epsilon is None
            or axes is None
            or axes.tolist() != [-1]
        ):
            return []
        return self._normalized(scaled, source, weight, epsilon)

    def _normalized(
        self, scaled: NodeProto, source: str, weight: str, epsilon: float
    ) -> Sequence[NodeProto]:
        [output], wide = scaled.output, self._makers.get(source)
        nodes = []
        reader = self._readers.get(output)
        if wide is not None and reader is not None and self._num_readers[output] == 1:
            half = next((a.i for a in reader.attribute if a.name == "to"), None)
            if wide.op_type == reader.op_type == "Cast" and half in _HALVES:
                # Both casts go: the operator takes and gives half precision.
                source, [output] = wide.input[0], reader.output
                nodes = [helper.make_node("Cast", [weight], [f"{_OURS}_{output}_weight"], to=half)]
                [weight] = nodes[0].output
                self._made.add(output)
        fused = helper.make_node(
            "SimplifiedLayerNormalization", [source, weight], [output], axis=-1, epsilon=epsilon
        )
        return [*nodes, fused]

    def _rotary(self, total: NodeProto) -> Sequence[NodeProto]:
        """In place of the sum `x * cos + turn(x) * sin`, which is the last operator."""
        products = [self._makers.get(name) for name in total.input]
        for plain, other in (products, products[::-1]):
            if plain is None or other is None or {plain.op_type, other.op_type} != {"Mul"}:
                continue
            turn = self._turn(other)
            if turn is None:
                continue
            source, factor, width = turn
            wide = [n for n in plain.input if self._before_cast(n) == source]
            rest = [n for n in (*plain.input, *other.input) if n not in (*wide, factor)]
            tables = [self._table(name, width) for name in rest]
            if len(wide) == 1 and len(tables) == 2 and all(tables):
                return self._turned(total, wide[0], tables)
        return []

    def _turn(self, product: NodeProto) -> tuple[str, str, int] | None:
        """Of a product by a tensor's turned halves: it, the factor that is it turned, a half."""
        for factor in product.input:
            joined = self._makers.get(self._before_cast(factor))
            if joined is None or joined.op_type != "Concat" or len(joined.input) != 2:
                continue
            negative, first = (self._makers.get(name) for name in joined.input)
            if first is None or negative is None or negative.op_type != "Neg":
                continue
            second = self._makers.get(negative.input[0])
            if second is None or second.input[0] != first.input[0]:
                continue
            if width := self._half(first, second):
                return first.input[0], factor, width
        return None

    def _before_cast(self, name: str) -> str:
        node = self._makers.get(name)
        return node.input[0] if node is not None and node.op_type == "Cast" else name

    def _turned(
        self, total: NodeProto, source: str, tables: Sequence[Sequence[NodeProto]]
    ) -> Sequence[NodeProto]:
        names = [table[-1].output[0] for table in tables]
        nodes = [*self._positions(), *tables[0], *tables[1]]
        fresh = [n for n in nodes if n.output[0] not in self._made]
        self._made.update(n.output[0] for n in fresh)
        inputs = [source, _POSITIONS, *names]
        node = helper.make_node("RotaryEmbedding", inputs, total.output, domain=_CONTRIB)
        return [*fresh, node]

    def _half(self, first: NodeProto, second: NodeProto) -> int:
        """Width of the half at which both slices of the last axis meet; 0 if they are no halves."""
        bounds = [self._bounds(node) for node in (first, second)]
        if None in bounds or {first.op_type, second.op_type} != {"Slice"}:
            return 0
        [(begin, width), (middle, end)] = [b for b in bounds if b is not None]
        is_halved = begin == 0 and width == middle and end >= 2 * width
        return width if is_halved else 0

    def _bounds(self, node: NodeProto) -> tuple[int, int] | None:
        """Begin and end of a slice of the last axis by ones."""
        values = [self._value(name) for name in node.input[1:]]
        if len(values) < 3 or any(v is None or v.size != 1 for v in values):
            return None
        begin, end, axis, *steps = (int(v.item()) for v in values if v is not None)
        fits = axis in (_NEGATIVE_LAST, _LAST_OF_HEADS) and steps in ([], [1])
        return (begin, end) if fits else None

    def _table(self, name: str, width: int) -> Sequence[NodeProto]:
        """A row of `width` numbers for each token, of numbers that come twice; empty if not."""
        wide = self._makers.get(name)
        if wide is None or wide.op_type != "Unsqueeze" or not self._is_doubled(wide.input[0]):
            return []
        if self._scalar(wide) not in _HEADS_AXES:
            return []  # not one row for all heads of a token
        source, half, table = wide.input[0], f"{_OURS}_{name}_half", f"{_OURS}_{name}_table"
        begin, end, axis = (self._ints(str(v), [v]) for v in (0, width, -1))
        rows = self._ints(f"rows_{width}", [-1, width])
        return [
            helper.make_node("Slice", [source, begin, end, axis], [half]),
            helper.make_node("Reshape", [half, rows], [table]),
        ]

    def _is_doubled(self, name: str) -> bool:
        """Whether a tensor's last axis says the same twice, of one angle for each two numbers."""
        node = self._makers.get(name)
        if node is None:
            return False
        if node.op_type == "Concat":
            return len(node.input) == 2 and len(set(node.input)) == 1
        if node.op_type == "Mul":
            others = [n for n in node.input if self._value(n) is None]
            return len(others) == 1 and self._scalar(node) is not None and self._is_doubled(*others)
        return node.op_type in {"Cos", "Sin", "Cast"} and self._is_doubled(node.input[0])

    def _positions(self) -> Sequence[NodeProto]:
        shape, size, count = (f"{_POSITIONS}_{what}" for what in ("shape", "size", "count"))
        zero, one = self._ints("zero", 0), self._ints("one", 1)
        return [
            helper.make_node("Shape", ["input_ids"], [shape]),
            helper.make_node("Size", ["input_ids"], [size]),
            helper.make_node("Range", [zero, size, one], [count]),
            helper.make_node("Reshape", [count, shape], [_POSITIONS]),
        ]

    def _only(self, node: NodeProto, kind: str) -> NodeProto | None:
        """The one maker of a node's inputs that is of that kind and read by that node alone."""
        makers = (self._makers.get(n) for n in node.input if self._num_readers[n] == 1)
        found = [m for m in makers if m is not None and m.op_type == kind]
        return found[0] if len(found) == 1 else None

    def _chain(self, node: NodeProto | None, *kinds: str) -> list[NodeProto]:
        """The makers one before the other, each of the kind that is named, as far as they are."""
        found = []
        for kind in kinds:
            node = self._only(node, kind) if node is not None else None
            if node is None:
                break
            found.append(node)
        return found

    def _value(self, name: str) -> NDArray[np.generic] | None:
        """A small constant."""
        constant = self._constants.get(name)
        if constant is None or constant.data_location == TensorProto.EXTERNAL:
            return None
        found: NDArray[np.generic] = numpy_helper.to_array(constant)
        return found

    def _scalar(self, node: NodeProto) -> float | None:
        """The one number among a node's inputs."""
        found = [v for v in map(self._value, node.input) if v is not None and v.size == 1]
        return float(found[0].item()) if len(found) == 1 else None

    def _ints(self, name: str, value: int | list[int]) -> str:
        """The name of a constant, made at its first use."""
        name = f"{_OURS}_{name}"
        if name not in self._constants:
            constant = numpy_helper.from_array(np.array(value, np.int64), name)
            self._graph.initializer.append(constant)
            self._constants[name] = constant
        return name


def _used(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> Iterator[NodeProto]:
    """The nodes that something comes of, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return reversed(kept)
