"""Attention of every width of heads: really compiled, by TensorRT for RTX, which needs no GPU."""

from pathlib import Path

import pytest

from enginehouse_server.engine.ahead import PlanOrder, compile_graph
from enginehouse_server.engine.decoder import LayerGeometry
from enginehouse_server.engine.graph import HalfPrecision
from enginehouse_server.engine.tensorrt.plan import decoder_profiles
from tests.fixtures.attention import make_tables, write_attention
from tests.fixtures.lowered import half_of

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")

MAX_TOKENS = 96


@pytest.mark.parametrize("precision", ["fp16", "bf16", None])
@pytest.mark.parametrize(
    ("width", "window"), [(6, 0), (8, 0), (10, 0), (12, 9), (20, 0), (96, 9), (100, 0)]
)
def test_heads_of_any_width_compile(
    width: int, window: int, precision: HalfPrecision | None, tmp_path: Path
) -> None:
    layers = (LayerGeometry(4, 2, width, width, window),)
    write_attention(layers[0], make_tables(layers[0]), tmp_path / "model.onnx")
    order = PlanOrder(
        flavour="tensorrt-rtx",
        compute_capabilities=("any",),
        precision=precision or "fp32",
        profiles=decoder_profiles(layers, MAX_TOKENS, 64, 4),
        layers=layers,
        max_tokens=MAX_TOKENS,
    )
    model = half_of(tmp_path / "model.onnx", precision, tmp_path)
    report = compile_graph(model, order, tmp_path / "plan", lambda *_: True)
    assert report.num_attentions == (width % 8 == 0)
