"""What one operator of ONNX Runtime says in place of many: where, and the same numbers."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, helper, parser

from enginehouse_server.engine.onnxruntime.fusions import fuse
from enginehouse_server.engine.onnxruntime.lowering import lower_decoder
from tests.conftest import Decoder

_NORM = """
<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
norm (float[2, 3, 8] x) => (float[2, 3, 8] y)
<float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}, float two = {POWER}, float eps = {0.001},
 int64[1] axes = {AXIS}>
{
  p = Pow(x, two)
  m = ReduceMean<keepdims = 1>(p, axes)
  a = Add(m, eps)
  s = Sqrt(a)
  r = Reciprocal(s)
  n = Mul(x, r)
  y = Mul(w, n)
}
"""
_ROTARY = """
<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
rotary (int64[2, 3] input_ids, float[2, 5, 3, 8] x, float[ROWS, 3, 4] f, float[ROWS, 3, 4] g)
    => (float[2, 5, 3, 8] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] half = {4}, int64[1] begin = {BEGIN},
 int64[1] end = {99}, int64[1] axis = {3}, float scale = {0.5}>
{
  doubled = Concat<axis = -1>(f, OTHER)
  c = Cos(doubled)
  cos = Mul(c, scale)
  s = Sin(doubled)
  sin = Mul(s, scale)
  wide_cos = Unsqueeze(cos, AXIS)
  wide_sin = Unsqueeze(sin, AXIS)
  plain = Mul(x, wide_cos)
  first = Slice(x, zero, half, axis, one)
  second = Slice(x, begin, end, axis, one)
  negative = Neg(second)
  turned = Concat<axis = -1>(negative, first)
  other = Mul(turned, wide_sin)
  y = Add(plain, other)
}
"""
# Of what the tables have a row: of each token, or of each head.
_TOKENS: dict[str, object] = {"ROWS": 2, "AXIS": "one"}
_HEADS: dict[str, object] = {"ROWS": 5, "AXIS": "zero"}


def parse(text: str, **words: object) -> ModelProto:
    for word, value in words.items():
        text = text.replace(word, str(value))
    return parser.parse_model(text)


def kinds(graph: GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


def answer(model: ModelProto) -> NDArray[np.float32]:
    draw = np.random.default_rng(0)
    feeds = {
        i.name: np.ones([d.dim_value for d in i.type.tensor_type.shape.dim], np.int64)
        if i.name == "input_ids"
        else draw.normal(size=[d.dim_value for d in i.type.tensor_type.shape.dim]).astype("f")
        for i in model.graph.input
    }
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0], np.float32)


@pytest.mark.parametrize(
    ("text", "words", "fused"),
    [
        (_NORM, {"POWER": 2, "AXIS": -1}, "SimplifiedLayerNormalization"),
        (_NORM, {"POWER": 4, "AXIS": -1}, ""),
        (_NORM, {"POWER": 2, "AXIS": 1}, ""),
        (_ROTARY, _TOKENS | {"BEGIN": 4, "OTHER": "f"}, "RotaryEmbedding"),
        (_ROTARY, _TOKENS | {"BEGIN": 4, "OTHER": "g"}, ""),
        (_ROTARY, _TOKENS | {"BEGIN": -4, "OTHER": "f"}, ""),
        (_ROTARY, _HEADS | {"BEGIN": 4, "OTHER": "f"}, ""),
    ],
)
def test_only_what_the_operator_says_is_said_by_it(
    text: str, words: dict[str, object], fused: str
) -> None:
    model, original = parse(text, **words), parse(text, **words)
    before = kinds(model.graph)
    fuse(model.graph)
    assert kinds(model.graph)[fused] == bool(fused)
    assert fused or kinds(model.graph) == before
    np.testing.assert_allclose(answer(model), answer(original), atol=1e-5)


def test_what_else_reads_a_part_still_finds_it() -> None:
    model = parse(_NORM, POWER=2, AXIS=-1)
    model.graph.output.append(helper.make_tensor_value_info("n", onnx.TensorProto.FLOAT, [2, 3, 8]))
    fuse(model.graph)
    onnx.checker.check_model(model)
    assert "SimplifiedLayerNormalization" not in kinds(model.graph)


@pytest.mark.parametrize(
    ("family", "num_norms", "num_rotary"),
    [("llama", 5, 4), ("qwen3", 9, 4), ("gemma2", 13, 6), ("gpt2", 0, 0)],
)
def test_an_export_s_norms_and_rotary_positions_are_all_found(
    family: str, num_norms: int, num_rotary: int, decoder: Decoder
) -> None:
    spec = decoder(family).spec(attention="slots")
    lowered = lower_decoder(spec.model, spec.layers, ())
    found = kinds(onnx.load_from_string(lowered.graph).graph)
    assert found["SimplifiedLayerNormalization"] == num_norms
    assert found["RotaryEmbedding"] == num_rotary
    assert not found["Reciprocal"]
    assert not found["Neg"]
