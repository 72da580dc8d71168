"""Parses a lowered graph and proves that the network is what the graph says.

A parser that drops a length or turns a mask gives a plan that runs and answers wrongly. So every
attention of the network must be causal to the end of its keys, or masked, and must have the lengths
of its keys; every cache must be updated in place; and there must be as many as the graph has.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from enginehouse_server.errors import PlanMismatchError, UnsupportedError

from .flavour import Handle

__all__ = ["float_product", "layer_info", "parse", "prove"]

_MOST_ERRORS = 3


def parse(trt: ModuleType, network: Handle, logger: Handle, file: Path) -> Handle:
    """Fills a network from an ONNX file.

    Returns:
        The parser, which owns the weights and must live until the plan is built.

    Raises:
        UnsupportedError: An operator of the graph is not what this TensorRT takes.
    """
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(file)):
        return parser
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    said = "; ".join(_said(error) for error in errors[:_MOST_ERRORS])
    raise UnsupportedError(
        f"TensorRT does not take {file.name}: {said or 'it did not say why'}. Build the model for "
        "another target, or in fp32 if the operator has no kernel in this precision"
    )


def prove(trt: ModuleType, network: Handle, num_attentions: int, num_caches: int) -> None:
    """Walks a parsed network.

    Args:
        trt: The binding.
        network: What was parsed.
        num_attentions: Fused attentions that the graph has.
        num_caches: Caches that it updates in place.

    Raises:
        PlanMismatchError: It is not what the graph says; nothing may be compiled from it.
    """
    attentions, caches = 0, 0
    inputs = {network.get_input(i).name for i in range(network.num_inputs)}
    outputs = {network.get_output(i).name for i in range(network.num_outputs)}
    for layer in _layers(network):
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            _prove_attention(trt, layer)
            attentions += 1
        elif layer.type == trt.LayerType.KV_CACHE_UPDATE:
            cache, updated = layer.get_input(0).name, layer.get_output(0).name
            if cache not in inputs or updated not in outputs:
                _refuse(layer, f"it updates {cache} as {updated}, which are not both of the plan")
            caches += 1
    for what, found, wanted in (
        ("attentions", attentions, num_attentions),
        ("caches updated in place", caches, num_caches),
    ):
        if found != wanted:
            raise PlanMismatchError(
                f"the network that TensorRT parsed has {found} {what}, the graph {wanted}: nothing "
                "is compiled, since it would answer wrongly"
            )


def float_product(trt: ModuleType, network: Handle) -> str:
    """The name of a product that is computed in fp32; empty if there is none."""
    products = (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION, trt.LayerType.EINSUM)
    for layer in _layers(network):
        if layer.type in products and layer.get_output(0).dtype == trt.float32:
            return str(layer.name)
    return ""


def layer_info(network: Handle) -> str:
    """The network's layers with their tensors, as JSON."""
    return json.dumps(
        [
            {
                "name": layer.name,
                "type": layer.type.name,
                "inputs": [_tensor(layer.get_input(i)) for i in range(layer.num_inputs)],
                "outputs": [_tensor(layer.get_output(i)) for i in range(layer.num_outputs)],
            }
            for layer in _layers(network)
        ]
    )


def _prove_attention(trt: ModuleType, layer: Handle) -> None:
    layer.__class__ = trt.IAttentionOutputLayer  # the binding gives the base class alone
    attention = layer.attention
    is_causal = attention.causal_kind == trt.CausalMaskKind.LOWER_RIGHT
    if not is_causal and attention.causal_kind != trt.CausalMaskKind.NONE:
        _refuse(layer, f"its mask is {attention.causal_kind}, not aligned to the end of its keys")
    if is_causal == (attention.mask is not None):
        _refuse(layer, "its mask was lost, or it has two")
    if attention.key_value_lengths is None:
        _refuse(layer, "the lengths of its keys were lost")
    is_fp32 = layer.get_output(0).dtype == trt.float32
    if is_fp32 and not attention.decomposable:
        _refuse(layer, "no kernel computes it in fp32, and it may not be taken apart")


def _layers(network: Handle) -> Iterator[Handle]:
    for i in range(network.num_layers):
        yield network.get_layer(i)


def _tensor(tensor: Handle) -> dict[str, object] | None:
    if tensor is None:  # an input that is left out
        return None
    # A shape that the parser could not work out has no length.
    shape = list(tensor.shape) if len(tensor.shape) >= 0 else None
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": shape}


def _said(error: Handle) -> str:
    return f"node {error.node_name() or error.node()} ({error.node_operator()}): {error.desc()}"


def _refuse(layer: Handle, why: str) -> None:
    raise PlanMismatchError(
        f"{layer.name}: {why}. Nothing is compiled, since it would answer wrongly: use another "
        "version of TensorRT, or another target"
    )
