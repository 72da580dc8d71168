"""Kernels that TensorRT for RTX compiled where a plan runs, kept for the next load."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from enginehouse_server.engine.base import EncoderSpec, KernelKeeper, Shape
from enginehouse_server.engine.create import create_decoder, create_encoder
from enginehouse_server.engine.decoder import StepItem
from tests.conftest import Decoder
from tests.fixtures.sums import expected, random_rows, write_sums
from tests.fixtures.trt_double import DoubleModule, install
from tests.fixtures.trt_double.plans import decoder_plan, encoder_plan

FILE, LAYERS = "Double-GPU-sm90.kernels", "Double-GPU-sm90.layers.json"
SHAPES = (Shape(1, 8), Shape(4, 16))


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    folder = tmp_path_factory.mktemp("encoder")
    return encoder_plan(write_sums(folder), folder / "model.plan", ((1, 1), (8, 16)))


@pytest.fixture
def kept(spec: EncoderSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncoderSpec:
    """An engine whose kernels are kept, by a load before."""
    made = replace(spec, kernels=tmp_path / "kernels")
    assert len(_load(made, monkeypatch)) == len(SHAPES), "both lanes have the same kernels"
    return made


def _load(spec: EncoderSpec, patch: pytest.MonkeyPatch, **machine: object) -> list[str]:
    """Loads, warms up and keeps; what was compiled."""
    module = install(patch, flavour="tensorrt-rtx", **machine)  # type: ignore[arg-type]
    with closing(create_encoder("tensorrt-rtx", spec)) as engine:
        for shape in SHAPES:
            for lane in engine.lanes:
                rows = random_rows(1, seed=1, longest=8)
                lane.start(rows, shape)
                np.testing.assert_allclose(lane.wait(), [expected(rows[0])], atol=1e-3)
        assert isinstance(engine, KernelKeeper)
        engine.keep_kernels()
    assert not module.faults
    [loaded] = module.engines
    return loaded.compiled


def _file(spec: EncoderSpec) -> Path:
    assert spec.kernels is not None
    return spec.kernels / FILE


def test_the_next_load_compiles_nothing_and_writes_nothing(
    kept: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _file(kept).stat()
    assert _load(kept, monkeypatch) == []
    assert _file(kept).stat() == before
    names = {file.name for file in _file(kept).parent.iterdir()}
    assert names == {FILE, LAYERS}, "drafts do not stay"


def test_what_is_compiled_besides_is_added(
    kept: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install(monkeypatch, flavour="tensorrt-rtx")
    with closing(create_encoder("tensorrt-rtx", kept)) as engine:
        engine.lanes[0].start(random_rows(2, 0, longest=8), Shape(2, 12))
        engine.lanes[0].wait()
        assert isinstance(engine, KernelKeeper)
        engine.keep_kernels()
    assert len(module.engines[0].compiled) == 1
    kernels = json.loads(_file(kept).read_bytes().partition(b"\n")[2])["kernels"]
    assert len(kernels) == len(SHAPES) + 1


def _flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-3],
        _flipped,
        lambda content: content.partition(b"\n")[2],
        lambda content: b"\xff" + content,
        lambda content: b"[]\n",
    ],
    ids=["empty", "truncated", "flipped", "headless", "binary", "other"],
)
def test_a_damaged_file_is_said_and_replaced(
    damage: Callable[[bytes], bytes],
    kept: EncoderSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = _file(kept)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert len(_load(kept, monkeypatch)) == len(SHAPES)
    [said] = [r.message for r in caplog.records if str(file) in r.message]
    assert "it is damaged" in said
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"driver_version": "13.2"}, "its driver is 13.0, and here is 13.2"),
        ({"driver_version": "12.9"}, "its driver is 13.0, and here is 12.9"),
        ({"name": "Double-GPU"}, "its device is Double GPU, and here is Double-GPU"),
    ],
)
def test_a_file_of_another_machine_is_said_and_replaced(
    machine: dict[str, str],
    reason: str,
    kept: EncoderSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert len(_load(kept, monkeypatch, **machine)) == len(SHAPES)
    assert reason in caplog.text
    assert _load(kept, monkeypatch, **machine) == []


def test_a_file_of_another_runtime_is_said_and_replaced(
    kept: EncoderSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    header, _, content = _file(kept).read_bytes().partition(b"\n")
    older = {**json.loads(header), "runtime": "11.3.0.1"}
    _file(kept).write_bytes(json.dumps(older).encode() + b"\n" + content)
    assert len(_load(kept, monkeypatch)) == len(SHAPES)
    assert "its runtime is 11.3.0.1, and here is 11.4.0.106" in caplog.text
    assert _load(kept, monkeypatch) == []


def test_each_kind_of_device_has_a_file_of_its_own(
    kept: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(_load(kept, monkeypatch, name="Other GPU")) == len(SHAPES)
    assert _load(kept, monkeypatch) == []
    assert _load(kept, monkeypatch, name="Other GPU") == []


def test_what_the_runtime_itself_refuses_is_said_and_replaced(
    kept: EncoderSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    header, _, content = _file(kept).read_bytes().partition(b"\n")
    foreign = json.dumps({**json.loads(content), "version": "1.0"}).encode()
    head = {**json.loads(header), "sha256": sha256(foreign).hexdigest()}
    _file(kept).write_bytes(json.dumps(head).encode() + b"\n" + foreign)
    assert len(_load(kept, monkeypatch)) == len(SHAPES)
    assert "TensorRT for RTX refuses it here" in caplog.text
    assert _load(kept, monkeypatch) == []


def test_without_a_folder_nothing_is_kept(
    spec: EncoderSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # each context of a lane compiles for itself
        assert len(_load(spec, monkeypatch)) == len(SHAPES) * spec.num_lanes
    assert not list(tmp_path.iterdir())


def test_tensorrt_itself_compiles_nothing_here_and_is_not_asked(
    spec: EncoderSpec, tmp_path: Path, double: DoubleModule
) -> None:
    with closing(create_encoder("tensorrt", replace(spec, kernels=tmp_path / "kernels"))) as engine:
        engine.lanes[0].start(random_rows(1, 0), Shape(1, 16))
        engine.lanes[0].wait()
        assert isinstance(engine, KernelKeeper)
        engine.keep_kernels()
    assert [file.name for file in (tmp_path / "kernels").iterdir()] == [LAYERS]


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(
    spec: EncoderSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "a file").write_text("")
    _load(replace(spec, kernels=tmp_path / "a file" / "kernels"), monkeypatch)
    assert str(tmp_path / "a file" / "kernels" / FILE) in caplog.text
    assert "--state-dir" in caplog.text


def test_a_context_that_takes_no_cache_runs_without(
    spec: EncoderSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = install(monkeypatch, flavour="tensorrt-rtx")
    with closing(
        create_encoder("tensorrt-rtx", replace(spec, kernels=tmp_path / "kernels"))
    ) as engine:
        module.engines[0].refuses_cache = True
        rows = random_rows(1, 0)
        engine.lanes[0].start(rows, Shape(1, 16))
        np.testing.assert_allclose(engine.lanes[0].wait(), [expected(rows[0])], atol=1e-3)
    assert "kernels are not kept" in caplog.text
    assert not module.faults


def test_a_decoder_s_kernels_are_kept_too(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(decoder_plan(decoder("llama").spec(), tmp_path), kernels=tmp_path / "kernels")
    num_compiled = []
    for _ in range(2):
        module = install(monkeypatch, flavour="tensorrt-rtx")
        with closing(create_decoder("tensorrt-rtx", spec)) as engine:
            for tokens in ([1, 2, 3], [4]):
                engine.start([StepItem([0], 0, tokens)])
                engine.wait()
            assert isinstance(engine, KernelKeeper)
            engine.keep_kernels()
        assert not module.faults
        num_compiled.append(len(module.engines[0].compiled))
    assert num_compiled == [2, 0]
