"""A decoder to its ONNX file: traced, tidied, and proven to have the attention that was seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnx
import onnx_ir
import torch
from transformers import PreTrainedModel

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export.complex import ExportableComplex
from enginehouse_builder.export.graph import (
    check_lengths,
    fix_squeezes,
    reason_of,
    save_graph,
    silent_exporter,
)
from enginehouse_builder.export.loading import quiet
from enginehouse_builder.export.tidy import tidy
from enginehouse_builder.manifest import AttentionLayer, Tensor

from .expert_products import write_out_products
from .experts import num_products
from .observe import Observed
from .operators import (
    ATTENTION,
    CACHE_UPDATE,
    DOMAIN,
    OPSET,
    SINKS_INPUT,
    SLOPES_INPUT,
    bodies,
)
from .slots import SlotDecoder

__all__ = ["input_tensors", "output_tensors", "write_decoder"]

_KINDS = ("key", "value")
_EXAMPLE_CAPACITY = 7  # tokens; dynamic in the graph


def input_tensors(layers: Sequence[AttentionLayer]) -> tuple[Tensor, ...]:
    """What the graph takes. Ragged tokens come as a batch of lengths of 1."""
    return (
        Tensor("input_ids", "int64", ("batch", "length")),
        Tensor("write_index", "int32", ("batch",)),
        Tensor("kv_length", "int32", ("batch",)),
        Tensor("logit_rows", "int64", ("rows",)),
        *_cache_tensors("past", layers),
    )


def output_tensors(observed: Observed) -> tuple[Tensor, ...]:
    """What the graph gives."""
    logits = Tensor("logits", "float32", ("rows", observed.vocab_size))
    return (logits, *_cache_tensors("present", observed.layers))


def write_decoder(model: PreTrainedModel, observed: Observed, max_tokens: int, file: Path) -> None:
    """Traces the model and writes `file`, with large weights beside it as `<file>.data`.

    Args:
        model: In the precision of the graph.
        observed: What its attention was seen to be.
        max_tokens: Length up to which the trace must hold.
        file: Where the graph goes.

    Raises:
        UnsupportedModelError: The model cannot be traced, not for every length, not with standard
            operators and the two of a decoder alone, or it lost some of its attention or experts on
            the way.
    """
    program = _trace(model, observed.layers)
    check_lengths(program, max_tokens)
    graph = program.model
    write_out_products(graph.graph, num_products(model))
    with silent_exporter():
        tidy(graph)
    fix_squeezes(graph.graph)
    _name_shapes(graph.graph, observed)
    check_attention(graph.graph, observed.layers)
    has_slopes = any(layer.has_slopes for layer in observed.layers)
    has_sinks = any(layer.has_sinks for layer in observed.layers)
    for body in bodies(has_slopes=has_slopes, has_sinks=has_sinks):
        function = onnx_ir.serde.deserialize_function(body)
        graph.functions[function.identifier()] = function
    graph.opset_imports[DOMAIN] = 1
    save_graph(graph, file)
    _check_opset(file)


def _cache_tensors(when: str, layers: Sequence[AttentionLayer]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            f"{when}_{kind}.{i}",
            "float32",
            (
                "batch",
                layer.num_kv_heads,
                "capacity",
                layer.key_dim if kind == "key" else layer.value_dim,
            ),
        )
        for kind in _KINDS
        for i, layer in enumerate(layers)
    )


def _trace(model: PreTrainedModel, layers: Sequence[AttentionLayer]) -> torch.onnx.ONNXProgram:
    inputs = input_tensors(layers)
    caches = [t for t in inputs if t.name.startswith("past")]
    # No size of 1, which the exporter takes for a constant, and none that is another's by chance.
    example = {
        "input_ids": torch.arange(6).reshape(2, 3),
        "write_index": torch.tensor([0, 1], dtype=torch.int32),
        "kv_length": torch.tensor([3, 4], dtype=torch.int32),
        "logit_rows": torch.tensor([2, 5, 4, 0]),
        "caches": [
            torch.zeros(2, int(t.shape[1]), _EXAMPLE_CAPACITY, int(t.shape[3]), dtype=model.dtype)
            for t in caches
        ],
    }
    shapes = {
        "input_ids": {0: "batch", 1: "length"},
        "write_index": {0: "batch"},
        "kv_length": {0: "batch"},
        "logit_rows": {0: "rows"},
        # A batch of their own, so that nothing in the graph takes its size from them: a runtime
        # that keeps its cache otherwise drops them.
        "caches": [{0: "slots", 2: "capacity"} for _ in caches],
    }
    module = SlotDecoder(model, layers).eval()
    try:
        with module.plugged(), ExportableComplex(), quiet(), silent_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (),
                kwargs=example,
                input_names=[tensor.name for tensor in inputs],
                output_names=["logits", *(t.name for t in _cache_tensors("present", layers))],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # the exporter passes on whatever the model's code raises
        raise UnsupportedModelError(f"it cannot be traced to ONNX: {reason_of(error)}") from error
    assert program is not None
    return program


def _name_shapes(graph: onnx_ir.Graph, observed: Observed) -> None:
    """Gives the graph's inputs and outputs the shapes that they are said to have."""
    said = (*input_tensors(observed.layers), *output_tensors(observed))
    for value, tensor in zip((*graph.inputs, *graph.outputs), said, strict=True):
        assert value.name == tensor.name
        dynamic = [i for i, size in enumerate(tensor.shape) if isinstance(size, str)]
        found = value.shape
        if found is None or any(isinstance(found[i], int) for i in dynamic):
            raise UnsupportedModelError(
                f"{tensor.name} came out with shape {found}: the model's code fixes the number or "
                "the length of texts"
            )
        value.shape = onnx_ir.Shape(tensor.shape)


def check_attention(graph: onnx_ir.Graph, layers: Sequence[AttentionLayer]) -> None:
    """Makes sure that every layer attends to its own cache, by the operators of a decoder.

    Raises:
        UnsupportedModelError: A layer does not, or the graph needs another runtime's operators.
    """
    others = {
        f"{node.domain}::{node.op_type}"
        for node in graph.all_nodes()
        if node.domain not in ("", DOMAIN)
    }
    if others:
        raise UnsupportedModelError(f"it needs operators outside the ONNX standard: {others}")
    attentions = [n for n in graph if (n.domain, n.op_type) == (DOMAIN, ATTENTION)]
    updates = [n for n in graph if (n.domain, n.op_type) == (DOMAIN, CACHE_UPDATE)]
    found = [_reads(node) for node in attentions]
    has_slopes = any(layer.has_slopes for layer in layers)
    has_sinks = any(layer.has_sinks for layer in layers)
    wanted = [
        _Reads(f"past_key.{i}", f"past_value.{i}", s.window, s.softcap, has_slopes, has_sinks)
        for i, s in enumerate(layers)
    ]
    if found != wanted or len(updates) != 2 * len(layers):
        raise UnsupportedModelError(
            f"of {len(layers)} layers {len(attentions)} attend to a cache in its graph, with "
            f"{len(updates)} updates: its attention is not the one that can be replaced"
        )


class _Reads(NamedTuple):
    """What an attention of the graph is given: its caches by name, and what changes its scores."""

    key: str | None
    value: str | None
    window: int
    softcap: float
    has_slopes: bool
    has_sinks: bool


def _reads(attention: onnx_ir.Node) -> _Reads:
    names: list[str | None] = []
    for value in attention.inputs[1:3]:
        update = value.producer() if value is not None else None
        is_update = update is not None and update.op_type == CACHE_UPDATE
        cache = update.inputs[0] if update is not None and is_update else None
        names.append(None if cache is None else cache.name)
    inputs = [*attention.inputs, None, None]
    return _Reads(
        names[0],
        names[1],
        attention.attributes["window"].as_int(),
        attention.attributes["softcap"].as_float(),
        inputs[SLOPES_INPUT] is not None,
        inputs[SINKS_INPUT] is not None,
    )


def _check_opset(file: Path) -> None:
    """Makes sure that the file says what it was made for."""
    opsets = {e.domain: e.version for e in onnx.load(file, load_external_data=False).opset_import}
    assert opsets == {"": OPSET, DOMAIN: 1}, opsets
