"""A decoder whose attention no paged operator expresses, from its checkpoint to the server."""

from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse_builder.cache_precision import cache_precision_of
from enginehouse_builder.decoder_file import cache_bytes, token_bytes
from enginehouse_builder.display import Display
from enginehouse_builder.errors import SpecError
from enginehouse_builder.pipeline import build
from enginehouse_builder.spec import BuildSpec
from enginehouse_builder.targets import Target
from enginehouse_server.engine.base import Precision
from enginehouse_server.engine.decoder import CachePrecision, DecoderSpec, LayerGeometry
from enginehouse_server.repository.load_decoder import DecoderSettings, load_decoder
from tests.builder.conftest import DecoderCheckpoint


@pytest.fixture
def spec(decoder_checkpoint: DecoderCheckpoint, cache_folder: Path, tmp_path: Path) -> BuildSpec:
    return BuildSpec(
        model=str(decoder_checkpoint("gemma2")),
        repository=tmp_path,
        cache=cache_folder,
        name="capped",
        max_batch=4,
        certify_minutes=0,
    )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_version_is_certified_in_slots_and_loads(spec: BuildSpec, precision: str) -> None:
    published = build(replace(spec, precision=precision), Display(quiet=True))  # type: ignore[arg-type]
    [engine] = published.manifest.decoders
    assert (engine.attention, engine.cache_precision) == ("slots", "fp32")
    assert {time.kind for time in engine.step_times} == {"prefill", "decode"}
    assert max(time.num_sequences for time in engine.step_times) == 4
    if precision == "fp32":
        assert engine.certificate.token_agreement == 1
    loaded = load_decoder(published.folder, DecoderSettings(num_threads=1, max_running=3))
    try:
        limits = loaded.engine.limits
        assert (limits.num_blocks, limits.max_sequences) == (3, 3)
        assert not limits.shares_blocks
    finally:
        loaded.engine.close()


def test_one_slot_is_enough_for_a_certificate(spec: BuildSpec) -> None:
    published = build(replace(spec, max_batch=1), Display(quiet=True))
    assert published.manifest.decoders[0].certificate.token_agreement == 1


@pytest.mark.parametrize(
    ("asked", "precision", "reason"),
    [
        ("u8", "fp32", "kept in slots, in fp32"),
        (None, "bf16", "Use fp32, int8 or int4"),
    ],
)
def test_other_precisions_are_refused(
    asked: CachePrecision | None, precision: Precision, reason: str
) -> None:
    with pytest.raises(SpecError, match=reason):
        cache_precision_of(Target("openvino", precision), "slots", asked)


def test_slots_are_as_many_as_half_of_the_free_memory_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = DecoderSpec(
        model=Path("model.onnx"),
        precision="fp32",
        cache_precision="fp32",
        layers=(LayerGeometry(4, 2, 8, 8, 0),) * 2,
        vocab_size=50,
        max_tokens=96,
        max_step_tokens=64,
        max_sequences=8,
        cache_bytes=0,
        num_threads=1,
        attention="slots",
    )
    slot = token_bytes(spec) * (96 + 32)
    for free, expected in ((None, 8), (1 << 40, 8), (10 * slot, 5), (0, 3)):
        monkeypatch.setattr("enginehouse_builder.decoder_file.available_bytes", lambda f=free: f)
        assert cache_bytes(spec, 1) == expected * slot
