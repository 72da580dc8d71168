"""A module to an ONNX file of standard operators, with dynamic batch and length."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from torch import Tensor, nn

from enginehouse_builder.errors import ExportError, UnsupportedModelError

from .loading import quiet
from .tidy import tidy

__all__ = [
    "FILE_NAME",
    "OPSET",
    "check_lengths",
    "fix_squeezes",
    "reason_of",
    "save_graph",
    "silent_exporter",
    "write_graph",
]

OPSET = 20
FILE_NAME = "model.onnx"
_INLINE_BYTES = 1 << 20  # smaller weights stay in the file itself


def write_graph(
    module: nn.Module, example: Mapping[str, Tensor], file: Path, max_tokens: int
) -> None:
    """Traces the module and writes `file`, with large weights beside it as `<file>.data`.

    Args:
        module: Takes `example` as keywords and returns logits `[batch, labels]`.
        example: Inputs `[batch, length]` by name; batch at least 2 and length at least 3, since
            the exporter takes a dimension of 1 for a constant.
        file: Where the graph goes.
        max_tokens: Length up to which the trace must hold.

    Raises:
        UnsupportedModelError: The module cannot be traced, or not for every length, or not with
            standard operators alone.
    """
    program = _trace(module, example)
    check_lengths(program, max_tokens)
    model = program.model
    with silent_exporter():
        tidy(model)
    fix_squeezes(model.graph)
    save_graph(model, file)
    _check_file(file)


def save_graph(model: onnx_ir.Model, file: Path) -> None:
    """Writes a graph, with large weights beside it as `<file>.data`."""
    model.producer_name, model.producer_version = "enginehouse", None
    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(weight.nbytes for weight in weights if weight is not None)
    external = f"{file.name}.data" if size > _INLINE_BYTES else None
    onnx_ir.save(model, file, external_data=external)


def _trace(module: nn.Module, example: Mapping[str, Tensor]) -> torch.onnx.ONNXProgram:
    shapes = {name: {0: "batch", 1: "length"} for name in example}
    try:
        with quiet(), silent_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (),
                kwargs=dict(example),
                input_names=list(example),
                output_names=["logits"],
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


def reason_of(error: BaseException) -> str:
    """The innermost cause of an export's failure, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    name = type(error).__name__
    if name in _KNOWN_REASONS:
        return _KNOWN_REASONS[name]
    if "conflicts between user-specified ranges and inferred ranges" in str(error):
        return "its code fixes the number or the length of texts"
    if found := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error)):
        of_complex = " of complex numbers" if "complex-valued" in str(error) else ""
        return f"ONNX has no operator for {found[1]}{of_complex}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{name}: {lines[0][:300]}" if lines else name


_BRANCHES = "its code takes one way or another by values that it computes, which a graph cannot"
_KNOWN_REASONS = {
    "GuardOnDataDependentSymNode": _BRANCHES,
    "UserError": _BRANCHES,
}
# Sizes of 0 and 1 are always left out, also those of slices, which bounds the length from below.
_LEAST_LOWER = 4
# Read by OpenVINO otherwise than the standard says.
_MISREAD = {"DFT": "the Fourier transform, which OpenVINO computes otherwise"}


def check_lengths(program: torch.onnx.ONNXProgram, max_tokens: int) -> None:
    """Refuses a trace that holds for some lengths only: the code branched on the length."""
    traced = program.exported_program
    assert traced is not None
    for values in traced.range_constraints.values():
        if bool(values.upper < max_tokens) or bool(values.lower > _LEAST_LOWER):
            raise UnsupportedModelError(
                f"its code takes another way outside of lengths {values.lower} to {values.upper}, "
                f"and rows have 1 to {max_tokens} tokens"
            )


def fix_squeezes(graph: onnx_ir.Graph) -> None:
    """Names the dimensions of squeezes that name none: a batch of 1 would lose its own."""
    for node in graph.all_nodes():
        if node.op_type != "Squeeze" or len(node.inputs) > 1 or node.inputs[0] is None:
            continue
        shape = node.inputs[0].shape
        if shape is None:
            raise UnsupportedModelError("it squeezes a tensor of unknown shape")
        axes = np.array([i for i, size in enumerate(shape) if size == 1], np.int64)
        if axes.size == 0:
            node.op_type = "Identity"
            continue
        tensor = onnx_ir.tensor(axes)
        value = onnx_ir.Value(
            name=f"{node.outputs[0].name}_axes",
            shape=onnx_ir.Shape(axes.shape),
            type=onnx_ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(value)
        node.resize_inputs(2)
        node.replace_input_with(1, value)


def _check_file(file: Path) -> None:
    """Makes sure that any runtime of the standard can read it."""
    model = onnx.load(file, load_external_data=False)
    for node in _nodes(model.graph):
        if node.op_type in _MISREAD:
            raise UnsupportedModelError(f"it needs {_MISREAD[node.op_type]}")
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    nodes = [*_nodes(model.graph)]
    custom = sorted({f"{n.domain}::{n.op_type}" for n in nodes if n.domain not in ("", "ai.onnx")})
    custom += [f"{f.domain}::{f.name}" for f in model.functions]
    if custom:
        raise UnsupportedModelError(f"it needs operators outside the ONNX standard: {custom}")
    if opsets.get("") != OPSET:
        raise ExportError(f"the exporter wrote opset {opsets}, not {OPSET}")
    for tensor in model.graph.input:
        sizes = [d.dim_param for d in tensor.type.tensor_type.shape.dim]
        if sizes != ["batch", "length"]:
            raise UnsupportedModelError(
                f"input {tensor.name} came out with shape {sizes}: the model's code fixes "
                "the number or the length of texts"
            )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
            for inner in attribute.graphs:
                yield from _nodes(inner)


@contextlib.contextmanager
def silent_exporter() -> Iterator[None]:
    """Holds back what the exporter prints and logs; its errors come as exceptions anyway."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
