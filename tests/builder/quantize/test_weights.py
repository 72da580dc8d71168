"""Rounded weights of a graph like a decoder's, run by both runtimes."""

from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from enginehouse_builder.errors import QuantizeError
from enginehouse_builder.quantize import QuantizedWeights, WeightPrecision, quantize_weights

VOCAB, WIDTH, INNER = 300, 64, 128
IDS = np.array([[3, 299, 0, 17], [5, 5, 120, 44]])


def _normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, shape[-1] ** -0.5, shape).astype(np.float32)


def _graph(folder: Path, *, tied: bool) -> Path:
    """Embeddings, a MatMul, a Gemm with bias, a transposed Gemm, and a head; all in a data file."""
    node = helper.make_node
    constants = {
        "table": _normal(0, VOCAB, WIDTH) * 8,
        "places": _normal(1, 4, WIDTH),
        "up": _normal(2, WIDTH, INNER),
        "down": _normal(3, WIDTH, INNER),
        "bias": _normal(4, WIDTH),
        "flat": np.array([-1, WIDTH]),
        "head": _normal(5, WIDTH, VOCAB),
    }
    nodes = [
        node("Gather", ["table", "ids"], ["embedded"]),
        node("Add", ["embedded", "places"], ["placed"]),
        node("Reshape", ["placed", "flat"], ["rows"]),
        node("MatMul", ["rows", "up"], ["wide"]),
        node("Relu", ["wide"], ["active"]),
        node("Gemm", ["active", "down", "bias"], ["narrow"], transB=1),
        node("Add", ["narrow", "rows"], ["hidden"]),
        *(
            [
                node("Transpose", ["table"], ["turned"], perm=[1, 0]),
                node("MatMul", ["hidden", "turned"], ["logits"]),
            ]
            if tied
            else [node("MatMul", ["hidden", "head"], ["logits"])]
        ),
    ]
    if tied:
        del constants["head"]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", VOCAB])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", [ids], [logits], initializers),
        opset_imports=[helper.make_opsetid("", 24)],
        ir_version=10,
    )
    folder.mkdir(exist_ok=True)
    file = folder / "model.onnx"
    onnx.save(
        model, file, save_as_external_data=True, location="model.onnx.data", size_threshold=256
    )
    return file


def _quantize(source: Path, target: Path, precision: WeightPrecision) -> QuantizedWeights:
    return quantize_weights(source, target, precision, lambda _: None)


def _openvino(file: Path) -> NDArray[np.float32]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = ov.Core().compile_model(file, "CPU", settings)
    found: NDArray[np.float32] = compiled(IDS)[0]
    return found


def _onnxruntime(file: Path) -> NDArray[np.float32]:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"ids": IDS})[0]
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("precision", "most"), [("int8", 0.02), ("int4", 0.3)])
def test_both_runtimes_answer_alike_and_nearly_as_before(
    tmp_path: Path, precision: WeightPrecision, most: float, tied: bool
) -> None:
    source, target = _graph(tmp_path / "a", tied=tied), tmp_path / "b" / "model.onnx"
    found = _quantize(source, target, precision)
    num_head = 1 if tied else 2  # the table, and a head of its own
    expected = (num_head + 2, 0) if precision == "int8" else (num_head, 2)
    assert (found.num_int8, found.num_int4) == expected
    exact, rounded = _openvino(source), _openvino(target)
    scale = np.abs(exact).max()
    assert 0 < np.abs(rounded - exact).max() < most * scale
    assert np.abs(_onnxruntime(target) - rounded).max() < 1e-5 * scale


def test_what_is_rounded_is_small_and_the_rest_as_it_was(tmp_path: Path) -> None:
    source, target = _graph(tmp_path / "a", tied=True), tmp_path / "b" / "model.onnx"
    found = _quantize(source, target, "int4")
    model = onnx.load(target)
    onnx.checker.check_model(model)
    tensors = {i.name: i for i in model.graph.initializer}
    assert not {"table", "up", "down"} & tensors.keys()
    assert tensors["up.levels"].data_type == tensors["down.levels"].data_type == TensorProto.INT4
    assert tensors["table.levels"].data_type == TensorProto.INT8
    assert numpy_helper.to_array(tensors["places"]).tolist() == _normal(1, 4, WIDTH).tolist()
    dequantized = {n.input[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    attributes = {
        name: {a.name: a.i for a in dequantized[name].attribute}
        for name in ("up.levels", "down.levels", "table.levels")
    }
    assert attributes["up.levels"] == {"axis": 0, "block_size": 64}
    assert attributes["down.levels"] == {"axis": 1, "block_size": 128}
    assert attributes["table.levels"] == {"axis": 0}
    assert found.target_bytes < found.source_bytes / 3
    assert target.with_name("model.onnx.data").stat().st_size == found.target_bytes


def test_a_table_of_positions_is_kept_however_large(tmp_path: Path) -> None:
    source, target = _graph(tmp_path / "a", tied=False), tmp_path / "b" / "model.onnx"
    model = onnx.load(source)
    rotations = _normal(6, VOCAB - 1, WIDTH)
    model.graph.initializer.append(numpy_helper.from_array(rotations, "rotations"))
    model.graph.node.insert(0, helper.make_node("Gather", ["rotations", "ids"], ["rotated"]))
    [placed] = [node for node in model.graph.node if node.output[0] == "placed"]
    placed.input[1] = "rotated"
    onnx.save(model, source)
    _quantize(source, target, "int8")
    tensors = {i.name: i for i in onnx.load(target).graph.initializer}
    assert numpy_helper.to_array(tensors["rotations"]).tolist() == rotations.tolist()
    assert tensors["table.levels"].data_type == TensorProto.INT8


def test_looked_up_rows_alone_are_dequantized(tmp_path: Path) -> None:
    target = tmp_path / "b" / "model.onnx"
    _quantize(_graph(tmp_path / "a", tied=False), target, "int8")
    graph = onnx.load(target).graph
    read = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert read == {"up.levels", "down.levels", "head.levels"}


def test_the_same_graph_gives_the_same_files(tmp_path: Path) -> None:
    source = _graph(tmp_path / "a", tied=True)
    for name in ("b", "c"):
        _quantize(source, tmp_path / name / "model.onnx", "int4")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_a_graph_without_matrices_is_refused(tmp_path: Path) -> None:
    source = _graph(tmp_path / "a", tied=True)
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, source)
    with pytest.raises(QuantizeError, match="no constant matrix to round"):
        _quantize(source, tmp_path / "b" / "model.onnx", "int8")
