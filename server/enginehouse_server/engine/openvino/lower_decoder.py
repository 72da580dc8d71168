"""A decoder's canonical graph made ready for OpenVINO's paged attention.

OpenVINO keeps a model with paged attention neither as a file nor in its cache, so this is done at
every load; it takes seconds, and no copy of the weights.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension

from enginehouse_server.engine.decoder import LayerGeometry
from enginehouse_server.errors import PlanMismatchError

from .paged_attention import CACHE_INPUTS, STEP_INPUTS, Rows, connect, paged_attention
from .paging import obstacle_to_paging

__all__ = ["lower_decoder"]

_DOMAIN = "enginehouse"
_KEPT_INPUTS = ("input_ids", "write_index", "logit_rows")
_SLOPES_INPUT, _SINKS_INPUT = 4, 5  # of Attention
_SCALARS = ("max_context_len",)


def lower_decoder(
    core: ov.Core, file: Path, layers: Sequence[LayerGeometry], *, equal_widths: bool = False
) -> ov.Model:
    """Reads the graph with its attention and caches replaced.

    Args:
        core: Gets the conversions of the two operators: use it for this model alone.
        file: The canonical graph; its large weights stay where they are, mapped.
        layers: Shape of each layer's attention.
        equal_widths: Whether keys and values are cached equally wide, the narrower ones with zeros
            behind them.

    Returns:
        A model from `input_ids [tokens, 1]`, `write_index [tokens]` (positions), `logit_rows
        [rows]`, the operator's STEP_INPUTS, and of each layer `key_cache.<i>` and
        `value_cache.<i>`, to `logits [rows, vocab]`.

    Raises:
        PlanMismatchError: The file is not such a graph, or this OpenVINO cannot lower it.
    """
    lowering = _Lowering(layers, equal_widths=equal_widths)
    core.add_extension(ConversionExtension("CacheUpdate", _DOMAIN, _new_entries))
    core.add_extension(ConversionExtension("Attention", _DOMAIN, lowering.attention))
    try:
        model = core.read_model(str(file))
    except RuntimeError as error:
        if lowering.failed is not None:
            raise lowering.failed from error
        raise PlanMismatchError(f"OpenVINO cannot read {file}: {error}") from error
    if len(lowering.attentions) != len(layers):
        raise PlanMismatchError(
            f"{file} has {len(lowering.attentions)} attentions, its manifest says {len(layers)} "
            "layers: build the model again"
        )
    return _connected(model, lowering.attentions)


def _new_entries(node: NodeContext) -> list[ov.Output]:
    """Instead of a slot with new keys or values in it, those alone."""
    return [node.get_input(1)]


class _Lowering:
    """Converts attentions in the order of the graph, which is that of the layers."""

    def __init__(self, layers: Sequence[LayerGeometry], *, equal_widths: bool) -> None:
        self._layers = layers
        self._equal_widths = equal_widths
        self.attentions: list[ov.Node] = []
        self.failed: PlanMismatchError | None = None

    def attention(self, node: NodeContext) -> list[ov.Output]:
        # An exception reaches the caller as OpenVINO's own, without its type.
        try:
            return [self._attention(node)]
        except PlanMismatchError as error:
            self.failed = error
            raise

    def _attention(self, node: NodeContext) -> ov.Output:
        layer = len(self.attentions)
        if layer == len(self._layers):
            raise PlanMismatchError(f"the graph has more than {layer} attentions")
        geometry = self._geometry(node, layer)
        query, key, value = (node.get_input(i) for i in range(3))
        value_dim = geometry.value_dim
        if self._equal_widths and geometry.key_dim != value_dim:
            width = max(geometry.key_dim, value_dim)
            query, key = (_widened(t, width - geometry.key_dim) for t in (query, key))
            value = _widened(value, width - value_dim)
            geometry = geometry._replace(key_dim=width, value_dim=width)
        rows = Rows(
            query=_rows(query, geometry.num_heads * geometry.key_dim),
            key=_rows(key, geometry.num_kv_heads * geometry.key_dim),
            value=_rows(value, geometry.num_kv_heads * geometry.value_dim),
        )
        paged = paged_attention(
            rows,
            geometry,
            slopes=node.get_input(_SLOPES_INPUT) if geometry.has_slopes else None,
            sinks=node.get_input(_SINKS_INPUT) if geometry.has_sinks else None,
        )
        self.attentions.append(paged)
        heads = ops.reshape(
            paged.output(0), _shape(-1, 1, geometry.num_heads, geometry.value_dim), False
        )
        if geometry.value_dim != value_dim:
            heads = ops.slice(heads, _shape(0), _shape(value_dim), _shape(1), _shape(3))
        return ops.transpose(heads, _shape(0, 2, 1, 3)).output(0)  # [tokens, heads, 1, width]

    def _geometry(self, node: NodeContext, layer: int) -> LayerGeometry:
        """The layer's, with what the graph itself says of it."""
        said = self._layers[layer]
        geometry = said._replace(
            window=int(node.get_attribute("window")),
            softcap=float(node.get_attribute("softcap", 0.0)),
        )
        if obstacle := obstacle_to_paging([geometry]):
            raise PlanMismatchError(f"the model {obstacle}")
        return geometry


def _widened(tensor: ov.Output, zeros: int) -> ov.Output:
    """`[tokens, heads, 1, dim]` with so many zeros behind each."""
    none, zero = _shape(0, 0, 0, 0), ops.constant(np.float32(0))
    return ops.pad(tensor, none, _shape(0, 0, 0, zeros), "constant", zero).output(0)


def _rows(tensor: ov.Output, width: int) -> ov.Output:
    """`[tokens, heads, 1, dim]` as `[tokens, heads * dim]`."""
    turned = ops.transpose(tensor, _shape(0, 2, 1, 3))
    return ops.reshape(turned, _shape(-1, width), False).output(0)


def _shape(*sizes: int) -> ov.Output:
    return ops.constant(np.array(sizes, np.int64)).output(0)


def _connected(model: ov.Model, attentions: Sequence[ov.Node]) -> ov.Model:
    """The model from a step's tokens and places to logits; the slots' caches are left behind."""
    parameters = [p for p in model.get_parameters() if p.friendly_name in _KEPT_INPUTS]
    for parameter in parameters:
        if parameter.friendly_name == "input_ids":
            parameter.set_partial_shape(ov.PartialShape([-1, 1]))

    def added(name: str, shape: list[int], kind: ov.Type) -> ov.Output:
        parameter = ops.parameter(ov.PartialShape(shape), kind, name=name)
        parameter.output(0).get_tensor().set_names({name})
        parameters.append(parameter)
        return parameter.output(0)

    places = {n: added(n, [] if n in _SCALARS else [-1], ov.Type.i32) for n in STEP_INPUTS}
    for layer, attention in enumerate(attentions):
        # The device chooses layout and precision of the caches when it compiles.
        caches = {n: added(f"{n}.{layer}", [-1] * 4, ov.Type.dynamic) for n in CACHE_INPUTS}
        connect(attention, {**places, **caches}.__getitem__)
    logits = [r for r in model.get_results() if "logits" in r.input_value(0).get_names()]
    return ov.Model(logits, parameters, "decoder")  # pyright: ignore
