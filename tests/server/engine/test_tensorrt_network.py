"""That a network which the parser made of something else is never compiled."""

from pathlib import Path

import onnx
import onnx.parser
import pytest
import tensorrt_rtx_bindings as trt

from enginehouse_server.engine.tensorrt import PlanReport, PlanSpec, Profile, TensorRange
from enginehouse_server.engine.tensorrt.compile import CancelledError, compile_plan
from enginehouse_server.errors import PlanMismatchError, UnsupportedError

_STANDARD = """
<ir_version: 10, opset_import: ["" : 24]>
graph (float16[b,2,s,16] q, float16[b,2,t,16] k, float16[b,2,t,16] v, int64[b] lengths)
    => (float16[b,2,s,16] out)
{
    out = Attention <is_causal = 1, scale = 1.0> (q, k, v, , , , lengths)
}
"""
_CUSTOM = """
<ir_version: 10, opset_import: ["" : 24, "trt" : 1]>
graph (float16[b,2,s,16] q, float16[b,2,t,16] k, float16[b,2,t,16] v, int32[b] lengths)
    => (float16[b,2,s,16] out)
{
    out = trt.TRT_Attention <causal_kind: string = KIND, TRT_decomposable = 1>
        (q, k, v, , , LENGTHS)
}
"""


def spec_of(text: str, folder: Path, **settings: object) -> PlanSpec:
    file = folder / "model.onnx"
    file.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    shapes = {"q": (2, 4, 16), "k": (2, 8, 16), "v": (2, 8, 16)}
    ranges = [TensorRange(n, (1, *s), (1, *s), (2, *s)) for n, s in shapes.items()]
    ranges.append(TensorRange("lengths", (1,), (1,), (2,)))
    known: dict[str, object] = {
        "model": file,
        "flavour": "tensorrt-rtx",
        "compute_capabilities": ("any",),
        "precision": "fp16",
        "profiles": (Profile("decode", tuple(ranges)),),
        "num_attentions": 1,
    }
    return PlanSpec(**(known | settings))  # type: ignore[arg-type]


def compile_text(text: str, folder: Path, **settings: object) -> PlanReport:
    return compile_plan(spec_of(text, folder, **settings), folder / "plan", lambda *_: True)


def custom(kind: str = "lower_right", lengths: str = "lengths") -> str:
    return _CUSTOM.replace("KIND", f'"{kind}"').replace("LENGTHS", lengths)


def test_what_is_right_compiles(tmp_path: Path) -> None:
    compile_text(custom(), tmp_path)
    assert (tmp_path / "plan").stat().st_size > 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (_STANDARD, "not aligned to the end|lengths of its keys were lost"),
        (custom("upper_left"), "not aligned to the end"),
        (custom("none"), "its mask was lost"),
        (custom(lengths=""), "lengths of its keys were lost"),
    ],
)
def test_an_attention_that_was_parsed_wrongly_is_refused(
    text: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanMismatchError, match=why):
        compile_text(text, tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


def test_a_network_with_fewer_attentions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanMismatchError, match="1 attentions, the graph 2"):
        compile_text(custom(), tmp_path, num_attentions=2)


def test_an_operator_without_an_importer_is_refused_by_name(tmp_path: Path) -> None:
    text = custom().replace("TRT_Attention", "Nothing")
    with pytest.raises(UnsupportedError, match="Nothing"):
        compile_text(text, tmp_path)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"compute_capabilities": ("sm90",)}, r"not compile for sm90.*--target tensorrt:sm90"),
        ({"compute_capabilities": ("sm86",), "precision": "fp8"}, "sm86 does not compute in fp8"),
        ({"compute_capabilities": ("sm75",), "precision": "bf16"}, "sm75 does not compute in bf16"),
    ],
)
def test_a_gpu_that_cannot_is_refused_before_anything(
    settings: dict[str, object], why: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=why):
        compile_text(custom(), tmp_path, **settings)


def test_a_portable_plan_is_for_the_gpus_that_have_its_products(tmp_path: Path) -> None:
    ranges = (TensorRange("x", (1, 16), (4, 16), (8, 16)),)
    settings = {"profiles": (Profile("encode", ranges),), "num_attentions": 0}
    text = """
        <ir_version: 10, opset_import: ["" : 24]>
        graph (TYPE[b,16] x) => (TYPE[b,b] out)
        {
            turned = Transpose (x)
            out = MatMul (x, turned)
        }
    """
    half = compile_text(text.replace("TYPE", "float16"), tmp_path, **settings)
    assert half.compute_capabilities[0] == "sm75"
    assert not half.notes
    whole = compile_text(text.replace("TYPE", "float"), tmp_path, **settings)
    assert whole.compute_capabilities == half.compute_capabilities[1:]
    [said] = whole.notes
    assert said.startswith("sm75 is left out: it has no product in fp32, as ")
    with pytest.raises(UnsupportedError, match="FP32 GEMM is not supported"):
        compile_text(
            text.replace("TYPE", "float"), tmp_path, compute_capabilities=("sm75",), **settings
        )


def test_the_full_flavour_is_refused_where_it_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(PlanMismatchError, match="tensorrt is not installed"):
        compile_text(custom(), tmp_path, flavour="tensorrt", compute_capabilities=("sm90",))


def test_a_compilation_can_be_cancelled(tmp_path: Path) -> None:
    with pytest.raises(CancelledError):
        compile_plan(spec_of(custom(), tmp_path), tmp_path / "plan", lambda *_: False)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


def test_for_rtx_nothing_is_timed(tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    report = compile_plan(
        spec_of(custom(), tmp_path, timing_cache=cache), tmp_path / "plan", lambda *_: True
    )
    assert not cache.exists()
    assert not report.notes
    assert report.version == trt.__version__
