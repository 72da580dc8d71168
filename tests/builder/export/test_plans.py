"""Every architecture as a plan: lowered, the same on ONNX Runtime, proven, and really compiled.

TensorRT for RTX compiles without a GPU, one portable plan for all GPUs that it takes.
"""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from enginehouse_server.engine.graph import NUM_BEST, HalfPrecision
from enginehouse_server.engine.reduction import REDUCED
from enginehouse_server.engine.tensorrt import PlanPrecision, PlanSpec, Profile, TensorRange
from enginehouse_server.engine.tensorrt.compile import RTX_COMPUTE_CAPABILITIES, compile_plan
from enginehouse_server.engine.tensorrt.plan import decoder_profiles
from tests.builder.export.conftest import Exporting
from tests.conftest import Decoder
from tests.fixtures.checkpoints import FAMILIES
from tests.fixtures.decoder_exports import DecoderExport
from tests.fixtures.decoders import DECODERS, LATENT_DECODERS, SLOT_DECODERS
from tests.fixtures.lowered import decoder_logits, half_of, lowered_of

TOLERANCE = 1e-4  # of the spread of logits: fp32, another order of sums
HALF_TOLERANCE = 0.1

ORDINARY = [*DECODERS, "deepseek_v3", *SLOT_DECODERS]
WIDE = [name for name in LATENT_DECODERS if name not in ORDINARY]


def compile_decoder(made: DecoderExport, precision: HalfPrecision, folder: Path) -> None:
    spec = made.spec()
    file, lowered = lowered_of(spec, precision, folder)
    report = compile_plan(
        PlanSpec(
            model=file,
            flavour="tensorrt-rtx",
            compute_capabilities=("any",),
            precision=precision,
            profiles=decoder_profiles(
                spec.layers, spec.max_tokens, spec.max_step_tokens, spec.max_sequences
            ),
            num_attentions=lowered.num_attentions,
            num_caches=lowered.num_caches,
        ),
        folder / "plan",
        lambda *_: True,
    )
    assert lowered.num_caches == 2 * len(spec.layers)
    assert report.num_bytes == (folder / "plan").stat().st_size > 0
    assert report.activation_bytes > 0
    assert json.loads(report.layer_info)
    names = {tensor.name for tensor in report.tensors if tensor.is_input}
    assert {"input_ids", "past_key.0", "past_value.0"} < names
    given = {tensor.name: (tensor.dtype, tensor.shape) for tensor in report.tensors}
    num_best = min(NUM_BEST, spec.vocab_size)
    assert [given[name] for name in REDUCED] == [
        ("FLOAT", (-1, num_best)),
        ("INT32", (-1, num_best)),
        ("FLOAT", (-1,)),
    ]


@pytest.mark.parametrize("family", ORDINARY)
def test_a_lowered_decoder_says_the_same_and_compiles(
    family: str, decoder: Decoder, tmp_path: Path
) -> None:
    made = decoder(family)
    spec = made.spec()
    canonical = decoder_logits(spec.model, spec)
    spread = canonical.std()
    (tmp_path / "fp32").mkdir()
    file, lowered = lowered_of(spec, None, tmp_path / "fp32")
    assert np.abs(decoder_logits(file, spec) - canonical).max() < TOLERANCE * spread
    # What TensorRT's fused layer cannot say is written out.
    fused = [x for x in spec.layers if not (x.softcap or x.has_sinks or x.key_dim != x.value_dim)]
    assert lowered.num_attentions == len(fused)
    (tmp_path / "half").mkdir()
    compile_decoder(made, "fp16", tmp_path / "half")
    half = decoder_logits(tmp_path / "half" / "lowered" / "model.onnx", spec)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - canonical).max() < HALF_TOLERANCE * spread


@pytest.mark.wide
@pytest.mark.parametrize("family", [*ORDINARY, *WIDE])
def test_a_decoder_compiles_in_bf16(family: str, decoder: Decoder, tmp_path: Path) -> None:
    compile_decoder(decoder(family), "bf16", tmp_path)


def compile_classifier(
    model: Path, inputs: list[str], precision: HalfPrecision, folder: Path
) -> None:
    ranges = tuple(TensorRange(name, (1, 1), (4, 32), (8, 64)) for name in inputs)
    report = compile_plan(
        PlanSpec(
            model=model,
            flavour="tensorrt-rtx",
            compute_capabilities=("any",),
            precision=precision,
            profiles=(Profile("encode", ranges),),
        ),
        folder / "plan",
        lambda *_: True,
    )
    assert report.num_bytes > 0
    assert report.activation_bytes > 0
    assert not report.notes
    assert set(report.compute_capabilities) <= set(RTX_COMPUTE_CAPABILITIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_says_the_same_in_half_precision_and_compiles(
    family: str, export: Exporting, tmp_path: Path
) -> None:
    model = export(family).folder / "model.onnx"
    file = half_of(model, "fp16", tmp_path)
    answers = []
    for graph in (model, file):
        # Its fusion of norms mixes types where only some of a norm is in half precision.
        session = ort.InferenceSession(
            str(graph),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["LayerNormFusionL1", "LayerNormFusionL2"],
        )
        inputs = [i.name for i in session.get_inputs()]
        feeds = {name: np.ones((2, 24), np.int64) for name in inputs}
        feeds["input_ids"] = np.random.default_rng(0).integers(5, 40, (2, 24))
        if "token_type_ids" in feeds:
            feeds["token_type_ids"][:] = 0
        answers.append(session.run(None, feeds)[0])
    whole, half = answers
    assert half.dtype == np.float32
    assert np.abs(half - whole).max() < HALF_TOLERANCE * max(np.abs(whole).max(), 0.1)
    compile_classifier(file, inputs, "fp16", tmp_path)


@pytest.mark.wide
@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_compiles_in_bf16(family: str, export: Exporting, tmp_path: Path) -> None:
    model = export(family).folder / "model.onnx"
    file = half_of(model, "bf16", tmp_path)
    inputs = [t.name for t in export(family).exported.inputs]
    compile_classifier(file, inputs, "bf16", tmp_path)


def test_products_are_rounded_in_tf32_where_that_is_asked_for_alone(
    export: Exporting, tmp_path: Path
) -> None:
    model = export("bert").folder / "model.onnx"
    inputs = [i.name for i in ort.InferenceSession(str(model)).get_inputs()]
    profile = Profile("encode", tuple(TensorRange(n, (1, 1), (4, 32), (8, 64)) for n in inputs))

    def settings(precision: PlanPrecision) -> set[bytes]:
        """What a plan says of it. Its bytes as a whole vary: the compiler numbers its own names."""
        spec = PlanSpec(model, "tensorrt-rtx", ("sm89",), precision, (profile,))
        compile_plan(spec, tmp_path / "plan", lambda *_: True)
        return set(re.findall(rb"\btf32=\d", (tmp_path / "plan").read_bytes()))

    assert settings("fp32") == {b"tf32=0"}
    assert settings("tf32") == {b"tf32=1"}


def test_what_a_plan_works_in_is_that_of_its_greatest_profile(
    export: Exporting, tmp_path: Path
) -> None:
    model = export("bert").folder / "model.onnx"
    inputs = [i.name for i in ort.InferenceSession(str(model)).get_inputs()]

    def activation_bytes(*batches: int) -> int:
        profiles = tuple(
            Profile("encode", tuple(TensorRange(n, (1, 1), (b, 64), (b, 64)) for n in inputs))
            for b in batches
        )
        spec = PlanSpec(model, "tensorrt-rtx", ("sm89",), "fp32", profiles)
        return compile_plan(spec, tmp_path / "plan", lambda *_: True).activation_bytes

    assert activation_bytes(32, 1) == activation_bytes(32) > activation_bytes(1)
