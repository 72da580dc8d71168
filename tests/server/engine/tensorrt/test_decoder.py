"""A decoder as a plan, on the double: what it says, its slots, graphs, and what is refused."""

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from enginehouse_server.engine.create import create_decoder
from enginehouse_server.engine.decoder import DecoderEngine, DecoderSpec, LayerGeometry, StepItem
from enginehouse_server.engine.graph import NUM_BEST
from enginehouse_server.engine.reduction import ReducedLayout
from enginehouse_server.errors import DeviceError, DeviceLostError, PlanMismatchError
from tests.conftest import Decoder
from tests.fixtures.attention import VOCABULARY, attend, make_tables, write_attention
from tests.fixtures.decoder_exports import DecoderExport
from tests.fixtures.driving import run_step
from tests.fixtures.trt_double import DoubleModule, install
from tests.fixtures.trt_double.plans import decoder_plan

TOLERANCE = 1e-4  # absolute; logits are around 1
VOCAB = 800
SEQUENCES = [
    np.random.default_rng(i).integers(0, VOCAB, n).tolist() for i, n in enumerate((70, 31, 90, 33))
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def made(request: pytest.FixtureRequest, decoder: Decoder) -> DecoderExport:
    return decoder(request.param)


@pytest.fixture(scope="module")
def originals(made: DecoderExport) -> list[NDArray[np.float32]]:
    return [made.original_logits(tokens) for tokens in SEQUENCES]


@pytest.fixture(scope="module")
def spec(made: DecoderExport, tmp_path_factory: pytest.TempPathFactory) -> DecoderSpec:
    return decoder_plan(made.spec(), tmp_path_factory.mktemp("plan"))


@pytest.fixture
def engine(double: DoubleModule, spec: DecoderSpec) -> Iterator[DecoderEngine]:
    with closing(create_decoder("tensorrt", spec)) as opened:
        yield opened


def _prefill(engine: DecoderEngine, tokens: Sequence[int], slot: int) -> NDArray[np.float32]:
    """The logits after each token."""
    rows = [
        run_step(engine, StepItem([slot], i, piece := tokens[i : i + 64], len(piece)))
        for i in range(0, len(tokens), 64)
    ]
    return np.concatenate(rows)


def test_a_prompt_in_any_chunks_gets_the_originals_logits(
    engine: DecoderEngine, originals: list[NDArray[np.float32]]
) -> None:
    for chunk in (64, 33, 7, 1):
        for start in range(0, 90, chunk):
            tokens = SEQUENCES[2][start : start + chunk]
            found = run_step(engine, StepItem([1], start, tokens, len(tokens)))
            expected = originals[2][start : start + len(tokens)]
            np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_sequences_of_any_length_decode_together_in_any_slots(
    engine: DecoderEngine, originals: list[NDArray[np.float32]], double: DoubleModule
) -> None:
    lengths, slots = {0: 40, 1: 3, 2: 77, 3: 20}, {0: 2, 1: 0, 2: 3, 3: 1}
    for sequence, length in lengths.items():
        _prefill(engine, SEQUENCES[sequence][:length], slots[sequence])
    for step in range(12):
        chosen = [(step + i) % 4 for i in range(1 + step % 4)]
        items = [
            StepItem([slots[s]], lengths[s], SEQUENCES[s][lengths[s] : lengths[s] + 1])
            for s in chosen
        ]
        expected = [originals[s][lengths[s]] for s in chosen]
        np.testing.assert_allclose(run_step(engine, *items), expected, atol=TOLERANCE)
        for s in chosen:
            lengths[s] += 1
    assert len(double.device.graphs) == 4, "one for each number of sequences"


def test_a_slot_is_used_again_by_a_shorter_sequence(
    engine: DecoderEngine, originals: list[NDArray[np.float32]]
) -> None:
    _prefill(engine, SEQUENCES[2], 0)
    found = _prefill(engine, SEQUENCES[1][:5], 0)
    np.testing.assert_allclose(found, originals[1][:5], atol=TOLERANCE)
    for place in range(5, 31):
        item = StepItem([0], place, SEQUENCES[1][place : place + 1])
        np.testing.assert_allclose(run_step(engine, item)[0], originals[1][place], atol=TOLERANCE)


def test_a_copied_slot_goes_on_by_itself(
    engine: DecoderEngine, originals: list[NDArray[np.float32]]
) -> None:
    _prefill(engine, SEQUENCES[0][:40], 1)
    engine.copy_block(1, 3)
    _prefill(engine, SEQUENCES[2][:60], 1)
    found = run_step(engine, StepItem([3], 40, SEQUENCES[0][40:70], 30))
    np.testing.assert_allclose(found, originals[0][40:70], atol=TOLERANCE)


def test_cleared_slots_hold_nothing(engine: DecoderEngine) -> None:
    _prefill(engine, SEQUENCES[0][:40], 1)
    _prefill(engine, SEQUENCES[2][:40], 3)
    engine.clear_blocks([1, 3])
    token = SEQUENCES[0][40:41]
    one, other = (run_step(engine, StepItem([slot], 40, token)) for slot in (1, 3))
    np.testing.assert_array_equal(one, other)


def test_as_many_logits_are_given_as_are_wanted(
    engine: DecoderEngine, originals: list[NDArray[np.float32]]
) -> None:
    tokens = SEQUENCES[0]
    assert run_step(engine, StepItem([0], 0, tokens[:20], 0)).shape == (0, VOCAB)
    assert run_step(engine, StepItem([0], 20, tokens[20:21], 0)).shape == (0, VOCAB)
    found = run_step(engine, StepItem([0], 21, tokens[21:41], 5))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, originals[0][36:41], atol=TOLERANCE)


def test_what_is_no_number_stays_with_its_own_sequence(
    double: DoubleModule, tmp_path: Path
) -> None:
    geometry = LayerGeometry(4, 2, 16, 16, 0)
    tables = make_tables(geometry)
    tables.value[0] = np.nan  # of one token
    write_attention(geometry, tables, tmp_path / "model.onnx")
    spec = decoder_plan(_attention_spec(geometry, tmp_path), tmp_path)
    tokens = list(range(1, 21))
    with closing(create_decoder("tensorrt", spec)) as engine:
        expected = run_step(engine, StepItem([0], 0, tokens, 20))
        assert np.isnan(run_step(engine, StepItem([1], 0, [0] * 60))).all()
        found = run_step(engine, StepItem([1], 0, tokens, 20))
        np.testing.assert_array_equal(found, expected)


def _attention_spec(geometry: LayerGeometry, folder: Path) -> DecoderSpec:
    return DecoderSpec(
        model=folder / "model.onnx",
        precision="fp32",
        cache_precision="fp32",
        layers=(geometry,),
        vocab_size=geometry.num_heads * geometry.value_dim,
        max_tokens=96,
        max_step_tokens=64,
        max_sequences=2,
        cache_bytes=1 << 20,
        num_threads=1,
        attention="slots",
    )


@pytest.mark.parametrize(
    "geometry",
    [
        LayerGeometry(4, 2, 16, 16, 9),
        LayerGeometry(4, 2, 16, 16, 0, softcap=2.0),
        LayerGeometry(4, 2, 16, 16, 0, has_sinks=True),
        LayerGeometry(4, 2, 16, 16, 9, has_slopes=True),
        LayerGeometry(4, 2, 16, 8, 20, softcap=3.0, has_slopes=True, has_sinks=True),
        LayerGeometry(4, 2, 10, 10, 0),
        LayerGeometry(4, 1, 20, 20, 9, has_slopes=True),
    ],
    ids=[
        *("a window", "softcap", "sinks", "slopes in a window", "all, of narrow values"),
        *("a width without a kernel", "another, with slopes in a window"),
    ],
)
def test_a_layer_attends_as_the_graph_says(
    geometry: LayerGeometry, double: DoubleModule, tmp_path: Path
) -> None:
    tables = make_tables(geometry)
    write_attention(geometry, tables, tmp_path / "model.onnx")
    spec = decoder_plan(_attention_spec(geometry, tmp_path), tmp_path)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 70)
    with closing(create_decoder("tensorrt", spec)) as engine:
        rows = [run_step(engine, StepItem([1], 0, tokens[:37].tolist(), 37))]
        for place in range(37, 40):
            rows.append(run_step(engine, StepItem([1], place, tokens[place : place + 1].tolist())))
        rows.append(run_step(engine, StepItem([1], 40, tokens[40:].tolist(), 30)))
    np.testing.assert_allclose(np.concatenate(rows), attend(tokens, geometry, tables), atol=1e-4)


def test_results_with_graphs_and_without_are_equal(
    spec: DecoderSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for has_graphs in (True, False):
        module = install(monkeypatch, has_graphs=has_graphs)
        with closing(create_decoder("tensorrt", spec)) as engine:
            for slot in range(3):
                _prefill(engine, SEQUENCES[slot][:20], slot)
            for step in range(5):
                items = [StepItem([s], 20 + step, SEQUENCES[s][20 + step :][:1]) for s in (2, 0, 1)]
                found.append(run_step(engine, *items))
        assert len(module.device.graphs) == has_graphs
        assert not module.faults
    np.testing.assert_array_equal(found[:5], found[5:])
    assert sum("without CUDA graphs" in r.message for r in caplog.records) == 1


def test_all_of_a_step_is_enqueued_before_it_is_waited_for(
    engine: DecoderEngine, double: DoubleModule
) -> None:
    _prefill(engine, SEQUENCES[0][:20], 0)
    device = double.device
    device.gate.clear()
    device.log.clear()
    engine.start([StepItem([0], 20, SEQUENCES[0][20:21])])
    copies_out = ["copy out"] * 2  # of the best logits, and then of all of them
    assert [what for what, _ in device.log] == ["copy in", "run", *copies_out]
    device.gate.set()
    engine.wait()


def test_decode_and_prefill_share_one_memory_to_work_in(
    engine: DecoderEngine, double: DoubleModule, spec: DecoderSpec
) -> None:
    _prefill(engine, SEQUENCES[0][:20], 0)
    for place in range(20, 24):
        run_step(engine, StepItem([0], place, SEQUENCES[0][place : place + 1]))
    [loaded] = double.engines
    assert len(loaded.contexts) == 2, "prefill's, and that of the graph"
    assert len({context.memory for context in loaded.contexts}) == 1


def test_the_memory_is_planned_and_said(
    spec: DecoderSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row = 96 * 4 * sum(g.num_kv_heads * (g.key_dim + g.value_dim) for g in spec.layers)
    install(monkeypatch)
    with (
        caplog.at_level(logging.INFO),
        closing(create_decoder("tensorrt", replace(spec, cache_bytes=3 * row))) as engine,
    ):
        assert engine.limits.num_blocks == engine.limits.max_sequences == 2, "and one to swap"
    assert any("MiB of caches" in r.message and "2 slots" in r.message for r in caplog.records)
    with closing(create_decoder("tensorrt", replace(spec, cache_bytes=row))) as engine:
        assert engine.limits.num_blocks == 1
    with closing(create_decoder("tensorrt", replace(spec, cache_bytes=0))) as engine:
        assert engine.limits.num_blocks == 4
        assert engine.limits.block_size == engine.limits.max_tokens == 96
    with pytest.raises(PlanMismatchError, match=rf"{row} bytes .* {row - 1} .*--cache-memory"):
        create_decoder("tensorrt", replace(spec, cache_bytes=row - 1))


def test_a_device_with_room_for_few_slots_has_few_and_without_any_refuses(
    spec: DecoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = spec.model.stat().st_size
    row = 96 * 4 * sum(g.num_kv_heads * (g.key_dim + g.value_dim) for g in spec.layers)
    reduced = sum(ReducedLayout(num_rows, NUM_BEST).num_bytes for num_rows in (64, 4))
    # Activations, logits, what a step is about.
    others = 2 * 4096 + 4 * VOCAB * (64 + 4) + reduced + 4 * 512
    enough = int((size + others + 7 * row) / 0.98)
    module = install(monkeypatch, memory_bytes=enough)
    with closing(create_decoder("tensorrt", replace(spec, cache_bytes=0))) as engine:
        assert engine.limits.num_blocks == 2, "half of what is left, less one to swap through"
    module = install(monkeypatch, memory_bytes=int((size + row) / 0.98))
    with pytest.raises(PlanMismatchError, match=r"MiB of weights.*of caches.*--max-running"):
        create_decoder("tensorrt", replace(spec, cache_bytes=0))
    assert module.device.is_closed
    assert not module.faults


def test_a_refused_enqueue_fails_its_step_alone(
    engine: DecoderEngine, double: DoubleModule, originals: list[NDArray[np.float32]]
) -> None:
    double.engines[0].num_refused_runs = 1
    with pytest.raises(DeviceError, match="enqueuing a run of the plan failed: no kernel"):
        engine.start([StepItem([0], 0, SEQUENCES[1][:20])])
    engine.clear_blocks([0])
    found = _prefill(engine, SEQUENCES[1][:20], 0)
    np.testing.assert_allclose(found, originals[1][:20], atol=TOLERANCE)


def test_a_lost_device_says_so(spec: DecoderSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install(monkeypatch)
    engine = create_decoder("tensorrt", spec)
    engine.start([StepItem([0], 0, SEQUENCES[1][:20])])
    module.device.lose()
    with pytest.raises(DeviceLostError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        engine.wait()
    with pytest.raises(DeviceLostError):
        engine.start([StepItem([0], 0, SEQUENCES[1][:20])])
    engine.close()
    assert module.device.is_closed


def test_a_manifest_of_another_model_is_refused(double: DoubleModule, spec: DecoderSpec) -> None:
    layers = spec.layers
    wider = (layers[0]._replace(key_dim=layers[0].key_dim * 2), *layers[1:])
    wrong = (
        {"layers": layers + layers[:1]},
        {"layers": layers[:1]},
        {"layers": wider},
        {"vocab_size": VOCAB + 1},
    )
    for change in wrong:
        with pytest.raises(PlanMismatchError, match="build the model again"):
            create_decoder("tensorrt", replace(spec, **change))
    with pytest.raises(PlanMismatchError, match="over slots, not paged"):
        create_decoder("tensorrt", replace(spec, attention="paged"))


def test_a_closed_engine_leaves_nothing_on_the_device(
    spec: DecoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install(monkeypatch)
    with closing(create_decoder("tensorrt", spec)) as engine:
        _prefill(engine, SEQUENCES[0][:20], 0)
    module.engines.clear()
    gc.collect()
    assert not module.device.num_bytes_used
