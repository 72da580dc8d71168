"""A decoder's canonical graph made ready to run over slots, whatever its attention."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension

from enginehouse_server.engine.decoder import LayerGeometry
from enginehouse_server.errors import PlanMismatchError

from .slot_attention import PAGE, Bias, Place, attend, distances_of, gathered, is_seen

__all__ = ["lower_slots"]

_DOMAIN = "enginehouse"
_KEPT_INPUTS = ("input_ids", "write_index", "logit_rows")
_SLOPES_INPUT, _SINKS_INPUT = 4, 5  # of Attention


def lower_slots(core: ov.Core, file: Path, layers: Sequence[LayerGeometry]) -> ov.Model:
    """Reads the graph with its attention and caches replaced.

    Args:
        core: Gets the conversions of the two operators: use it for this model alone.
        file: The canonical graph; its large weights stay where they are, mapped.
        layers: Shape of each layer's attention.

    Returns:
        A model from `input_ids [batch, length]`, `write_index [batch]`, `logit_rows [rows]`,
        `pages [batch, n]`, `written [batch * length]` and the caches, of each layer
        `past_key.<i>` and `past_value.<i>`, `[kv_heads, pages, PAGE, width]`, to `logits [rows,
        vocab]` and the new entries of the caches, `new_key.<i>` and `new_value.<i>`, `[batch,
        kv_heads, length, width]`.

    Raises:
        PlanMismatchError: The file is not such a graph, or this OpenVINO cannot read it.
    """
    lowering = _Lowering(layers)
    core.add_extension(ConversionExtension("CacheUpdate", _DOMAIN, lowering.cache_update))
    core.add_extension(ConversionExtension("Attention", _DOMAIN, lowering.attention))
    try:
        model = core.read_model(str(file))
    except RuntimeError as error:
        raise PlanMismatchError(f"OpenVINO cannot read {file}: {error}") from error
    if lowering.num_attentions != len(layers):
        raise PlanMismatchError(
            f"{file} has {lowering.num_attentions} attentions, its manifest says {len(layers)} "
            "layers: build the model again"
        )
    return lowering.connected(model)


class _Lowering:
    """Converts both operators in the order of the graph, which is that of the layers."""

    def __init__(self, layers: Sequence[LayerGeometry]) -> None:
        self._layers = layers
        self.num_attentions = 0
        # A parameter may not be made while the graph is read: `connected` puts them here.
        self._pages = ops.constant(np.zeros((1, 1), np.int32)).output(0)
        self._written = ops.constant(np.zeros(1, np.int32)).output(0)
        self._place: Place | None = None
        self._distances: ov.Output | None = None
        self._seen: dict[int, ov.Output] = {}  # by window
        self._updates: dict[str, ov.Output] = {}  # by name of the cache

    def cache_update(self, node: NodeContext) -> list[ov.Output]:
        cache, update, start = (node.get_input(i) for i in range(3))
        if self._place is None:
            self._place = Place(self._pages, self._written, start)
        self._updates[cache.get_node().get_friendly_name()] = update
        shape = cache.get_partial_shape()  # as the file has it: [batch, kv_heads, capacity, width]
        heads, width = shape[1].get_length(), shape[3].get_length()
        return [gathered(cache, update, self._place, heads, width)]

    def attention(self, node: NodeContext) -> list[ov.Output]:
        assert self._place is not None, "attention comes after the updates of what it sees"
        query, key, value = (node.get_input(i) for i in range(3))
        if self._distances is None:
            self._distances = distances_of(query, self._place)
        window = int(node.get_attribute("window"))
        if window not in self._seen:
            self._seen[window] = is_seen(self._distances, window)
        # There may be more than the manifest says, which is found out when all are read.
        said = self._layers[min(self.num_attentions, len(self._layers) - 1)]
        self.num_attentions += 1
        bias = Bias(
            softcap=float(node.get_attribute("softcap", 0.0)),
            distances=self._distances,
            slopes=_optional(node, _SLOPES_INPUT),
            sinks=_optional(node, _SINKS_INPUT),
        )
        return [attend(query, key, value, self._seen[window], bias, said)]

    def connected(self, model: ov.Model) -> ov.Model:
        """The model with its step's places as inputs, and new entries of the caches as outputs."""
        parameters = []
        for parameter in model.get_parameters():
            name = parameter.friendly_name
            if name in self._updates:
                heads, width = (parameter.get_partial_shape()[i] for i in (1, 3))
                parameter.set_partial_shape(ov.PartialShape([heads, -1, PAGE, width]))
            if name in self._updates or name in _KEPT_INPUTS:
                parameters.append(parameter)
        for name, open_end, rank in (("pages", self._pages, 2), ("written", self._written, 1)):
            added = ops.parameter(ov.PartialShape([-1] * rank), ov.Type.i32, name=name)
            added.output(0).get_tensor().set_names({name})
            for target in open_end.get_target_inputs():
                target.replace_source_output(added.output(0))
            parameters.append(added)
        results = [r for r in model.get_results() if "logits" in r.input_value(0).get_names()]
        for name, update in self._updates.items():
            result = ops.result(update)
            result.output(0).get_tensor().add_names({name.replace("past", "new", 1)})
            results.append(result)
        return ov.Model(results, parameters, "decoder")  # pyright: ignore


def _optional(node: NodeContext, index: int) -> ov.Output | None:
    """An input that the graph may leave out, at its end or by an empty name."""
    if index >= node.get_input_size():
        return None
    given: ov.Output = node.get_input(index)
    return None if given.get_node().get_type_name() == "NullNode" else given
