from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from enginehouse_builder.engine_file import EngineFile, opened
from enginehouse_builder.errors import QuantizeError
from enginehouse_builder.quantize import Calibration, Quantized, quantize
from enginehouse_builder.quantize.calibrate import Activation, collect
from enginehouse_builder.quantize.layers import find_groups
from enginehouse_builder.quantize.scales import choose_scales, quantize_matrix
from enginehouse_server.engine.base import Shape, TokenRow
from enginehouse_server.text import Encoding

WIDTH, LABELS, VOCABULARY = 32, 4, 50
ROWS = [Encoding([(7 * n + i) % VOCABULARY for i in range(2 + n)], None, 2 + n) for n in range(12)]


def _normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _graph(folder: Path, *, shared: bool = False, external: bool = False) -> Path:
    """Embeds, multiplies twice for every token, pools, and classifies with a Gemm."""
    second = "first" if shared else "second"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", second], ["deep"]),
        helper.make_node("ReduceMax", ["deep", "axis"], ["pooled"], keepdims=0),
        helper.make_node("Gemm", ["pooled", "head", "bias"], ["logits"], transB=1),
    ]
    table = _normal(0, VOCABULARY, WIDTH)
    table[:, 3] *= 40  # an outlier channel
    constants: dict[str, NDArray[Any]] = {
        "table": table,
        "first": _normal(1, WIDTH, WIDTH),
        "second": _normal(2, WIDTH, WIDTH),
        "axis": np.array([1], np.int64),
        "head": _normal(3, LABELS, WIDTH),
        "bias": _normal(4, LABELS),
    }
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["b", "l"])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["b", LABELS])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    file = folder / "model.onnx"
    onnx.save(
        model, file, save_as_external_data=external, location="model.onnx.data", size_threshold=256
    )
    return file


def _quantize(source: Path, target: Path) -> Quantized:
    return quantize(source, target, Calibration(ROWS, ("input_ids",), 0, 1), lambda _: None)


def _logits(model: Path, rows: Sequence[TokenRow] = ROWS) -> NDArray[np.float32]:
    answers = []
    with opened(EngineFile(model, "int8", ("input_ids",), 0, 64, 1)) as engine:
        for row in rows:
            engine.lanes[0].start([row], Shape(1, len(row.ids)))
            answers.append(engine.lanes[0].wait()[0])
    return np.array(answers)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_the_int8_graph_answers_nearly_as_the_original(
    tmp_path: Path, shared: bool, external: bool
) -> None:
    source, target = _graph(tmp_path, shared=shared, external=external), tmp_path / "q/model.onnx"
    found = _quantize(source, target)
    assert (found.num_int8, found.num_fp32) == (2, 0)
    exact, rounded = _logits(source), _logits(target)
    assert np.abs(rounded - exact).max() < 0.03 * np.abs(exact).max()
    assert np.abs(rounded - exact).max() > 0


def test_the_head_stays_and_the_rest_is_symmetric_int8(tmp_path: Path) -> None:
    target = tmp_path / "q" / "model.onnx"
    _quantize(_graph(tmp_path), target)
    model = onnx.load(target)
    onnx.checker.check_model(model)
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    assert "first" not in constants
    assert constants["head"].dtype == np.float32
    zeros = [constants[n.input[2]] for n in model.graph.node if "QuantizeLinear" in n.op_type]
    zeros += [constants[n.input[2]] for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)


def test_what_only_the_body_of_a_branch_reads_is_kept(tmp_path: Path) -> None:
    source, target = _graph(tmp_path), tmp_path / "q" / "model.onnx"
    model = onnx.load(source)
    logits = model.graph.node[-1]
    logits.output[0] = "plain"
    bodies = {
        name: helper.make_graph(
            [helper.make_node("ReduceSum", [matrix], [name], keepdims=0)],
            name,
            [],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [])],
        )
        for name, matrix in (("then", "first"), ("else", "second"))
    }
    branch = helper.make_node("If", ["is_forty"], ["sum"])
    branch.attribute.extend(
        helper.make_attribute(f"{name}_branch", body) for name, body in bodies.items()
    )
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["input_ids"], ["highest"], keepdims=0),
            helper.make_node("Equal", ["highest", "forty"], ["is_forty"]),
            branch,
            helper.make_node("Add", ["plain", "sum"], ["logits"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(40, np.int64), "forty"))
    onnx.save(model, source)
    _quantize(source, target)
    onnx.checker.check_model(onnx.load(target))
    exact, rounded = _logits(source), _logits(target)
    assert np.abs(rounded - exact).max() < 0.03 * np.abs(exact).max()


def test_layers_that_share_a_matrix_share_its_int8_form(tmp_path: Path) -> None:
    target = tmp_path / "q" / "model.onnx"
    _quantize(_graph(tmp_path, shared=True), target)
    graph = onnx.load(target).graph
    matrices = [i for i in graph.initializer if i.data_type == onnx.TensorProto.INT8 and i.dims]
    assert [tuple(i.dims) for i in matrices if len(i.dims) == 2] == [(WIDTH, WIDTH)]


def test_the_same_samples_give_the_same_graph(tmp_path: Path) -> None:
    source = _graph(tmp_path)
    _quantize(source, tmp_path / "a" / "model.onnx")
    _quantize(source, tmp_path / "b" / "model.onnx")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_onnx_runtime_gives_the_same_answers(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    target = tmp_path / "q" / "model.onnx"
    _quantize(_graph(tmp_path), target)
    session = runtime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    theirs = np.array(
        [session.run(None, {"input_ids": np.array([row.ids], np.int64)})[0][0] for row in ROWS]
    )
    ours = _logits(target)
    assert np.abs(theirs - ours).max() < 0.02 * np.abs(ours).max()


def test_a_graph_without_layers_is_refused(tmp_path: Path) -> None:
    model = onnx.load(_graph(tmp_path))
    del model.graph.node[1:4]
    model.graph.node[1].input[0] = "embedded"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(QuantizeError, match="--precision fp32"):
        _quantize(tmp_path / "model.onnx", tmp_path / "q" / "model.onnx")


def test_layers_are_grouped_by_what_they_share(tmp_path: Path) -> None:
    groups = find_groups(onnx.load(_graph(tmp_path)).graph)
    assert [[layer.output for layer in g.layers] for g in groups] == [
        ["hidden"],
        ["deep"],
        ["logits"],
    ]
    [joined, _] = find_groups(onnx.load(_graph(tmp_path, shared=True)).graph)
    assert joined.activations == ["embedded", "active"]
    assert len(joined.weights) == 1


def test_smoothing_keeps_an_outlier_channel_from_drowning_the_rest() -> None:
    vectors, matrix = _normal(0, 200, WIDTH), _normal(1, WIDTH, WIDTH)
    vectors[:, 3] *= 100
    scales = choose_scales([Activation(np.abs(vectors).max(axis=0), vectors)], [matrix])
    step = np.abs(vectors).max() / 127
    plain = np.rint(vectors / step) * step @ matrix - vectors @ matrix
    assert scales.error < 0.05 * np.square(plain).sum() / np.square(vectors @ matrix).sum()


def test_a_dead_channel_does_no_harm() -> None:
    vectors, matrix = _normal(0, 200, WIDTH), _normal(1, WIDTH, WIDTH)
    vectors[:, 3] = 0
    matrix[5] = 0
    scales = choose_scales([Activation(np.abs(vectors).max(axis=0), vectors)], [matrix])
    assert scales.error < 1e-3
    assert np.isfinite(scales.divisor).all()


def test_a_matrix_keeps_its_greatest_values() -> None:
    matrix = _normal(0, WIDTH, LABELS)
    matrix[:, 2] = 0
    quantized, steps = quantize_matrix(matrix)
    assert quantized.dtype == np.int8
    assert np.abs(quantized * steps - matrix).max() <= steps.max() / 2 + 1e-6


class _Constant:
    """Activations that say which token they are of; padding is enormous."""

    def read(self, rows: Sequence[TokenRow], shape: Shape) -> dict[str, NDArray[np.float32]]:
        tokens = np.full((*shape, 2), 1e9, np.float32)
        for i, row in enumerate(rows):
            tokens[i, : len(row.ids), 0] = row.ids
            tokens[i, : len(row.ids), 1] = -1
        return {"token": tokens, "text": np.zeros((shape.batch, 2), np.float32)}


def test_calibration_leaves_out_padding_and_what_is_once_a_text() -> None:
    found = collect(_Constant(), ROWS)
    assert found.keys() == {"token"}
    assert found["token"].max_abs.tolist() == [VOCABULARY - 1, 1]
    assert len(found["token"].rows) == sum(len(row.ids) for row in ROWS)
