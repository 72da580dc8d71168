"""ONNX Runtime's engines as on a GPU: its provider for processors on the memory of a double.

What is tried is everything but the provider: copies and their order, addresses, rows that move,
graphs of half precision, faults. `tests/gpu` tries the same on a real device.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from enginehouse_server.engine.base import EncoderSpec, Shape
from enginehouse_server.engine.decoder import DecoderSpec, StepItem
from enginehouse_server.engine.graph import NUM_BEST, to_half
from enginehouse_server.engine.onnxruntime import OnnxRuntimeDecoder, OnnxRuntimeEncoder
from enginehouse_server.engine.onnxruntime.device import check_installed, describe_device
from enginehouse_server.engine.onnxruntime.elements import BF16, FP16, FP32, Element, to_fp32
from enginehouse_server.engine.onnxruntime.lowering import LENGTH_INPUT, lower_decoder
from enginehouse_server.engine.onnxruntime.memory import CudaMemory
from enginehouse_server.engine.onnxruntime.place import Place, cpu_place, cuda_place
from enginehouse_server.engine.onnxruntime.session import BoundSession, open_session
from enginehouse_server.errors import DeviceError, DeviceLostError, PlanMismatchError
from enginehouse_server.repository.warm import time_steps, warm_up_decoder
from tests.conftest import Decoder
from tests.fixtures.cuda_double import CudaDouble
from tests.fixtures.driving import check_reduction, reduce_step, run_step
from tests.fixtures.sums import VOCABULARY, Row, expected
from tests.server.engine.test_encoders import spec  # noqa: F401

TOLERANCE = 1e-4
VOCAB = 800
SEQUENCES = [
    np.random.default_rng(i).integers(0, VOCAB, n).tolist() for i, n in enumerate((70, 31, 90, 33))
]
GROUPED, OWN_OPERATORS = frozenset({FP32, FP16}), frozenset[Element]()


def place_on(
    device: CudaDouble, grouped: frozenset[Element] = GROUPED, *, has_graphs: bool = False
) -> Place:
    """A GPU's place, on which the provider for processors computes.

    That one takes what is asked of captured graphs, and captures nothing: the steps are the same.
    """
    return Place(
        device=describe_device(),
        provider="CPUExecutionProvider",
        device_type="cpu",
        memory=CudaMemory(device),
        grouped=grouped,
        precisions=frozenset({"fp32", "fp16"}),
        cache_precisions=frozenset({"fp32", "fp16"}),
        has_graphs=has_graphs,
        gpu=device,
    )


@pytest.fixture
def device() -> Iterator[CudaDouble]:
    """Whatever is made on it must be given back."""
    made = CudaDouble()
    yield made
    assert made.is_closed
    assert not made.buffers


def test_rows_get_their_own_logits_and_lanes_do_not_meet(
    device: CudaDouble,
    spec: EncoderSpec,  # noqa: F811
) -> None:
    with OnnxRuntimeEncoder(replace(spec, num_lanes=4), place_on(device)) as engine:
        one, other = engine.lanes  # more than two would only wait for the device
        draw = np.random.default_rng(0)
        for count, shape in ((1, Shape(1, 16)), (3, Shape(4, 16)), (4, Shape(4, 20))) * 2:
            batches = [
                [Row(draw.integers(0, VOCABULARY, 1 + draw.integers(0, 15)).tolist())] * count
                for _ in range(2)
            ]
            one.start(batches[0], shape)
            other.start(batches[1], shape)
            found = one.wait(), other.wait()
            for logits, rows in zip(found, batches, strict=True):
                np.testing.assert_allclose(logits, [expected(r) for r in rows], atol=1e-3)


def test_a_lost_device_is_told_from_a_failed_batch(
    device: CudaDouble,
    spec: EncoderSpec,  # noqa: F811
) -> None:
    with OnnxRuntimeEncoder(spec, place_on(device)) as engine:
        lane = engine.lanes[0]
        lane.start([Row([VOCABULARY])], Shape(1, 4))
        with pytest.raises(DeviceError, match="ONNX Runtime failed on a batch") as failed:
            lane.wait()
        assert not isinstance(failed.value, DeviceLostError)
        device.is_lost = True
        lane.start([Row([1])], Shape(1, 4))
        with pytest.raises(DeviceLostError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            lane.wait()


class _Uncapturable(ort.InferenceSession):  # type: ignore[misc]
    """A session that refuses to be captured, and runs otherwise."""

    def __init__(self, model: str, provider: str) -> None:
        super().__init__(model, providers=[provider])
        self.graphs: list[str] = []

    def run_with_iobinding(
        self, iobinding: ort.IOBinding, run_options: ort.RunOptions | None = None
    ) -> None:
        assert run_options is not None
        self.graphs.append(run_options.get_run_config_entry("gpu_graph_id"))
        if self.graphs[-1] in ("3", "4"):
            raise RuntimeError("operation not permitted when stream is capturing")
        super().run_with_iobinding(iobinding, run_options)


def test_what_cannot_be_captured_is_launched_piece_by_piece(
    device: CudaDouble,
    spec: EncoderSpec,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = place_on(device, has_graphs=True)
    opened = open_session(spec.model, 1, place)
    real = _Uncapturable(str(spec.model), place.provider)
    session = BoundSession(real, place, has_graphs=opened.has_graphs)
    ids = np.ones((1, 4), np.int64)
    found = np.zeros((1, 3), np.float32)
    for name in spec.inputs:
        session.bind_input(name, ids.shape, ids.ctypes.data)
    session.bind_output("logits", found.shape, found.ctypes.data)
    for graph in (3, 3, 4, 5, None):
        session.run("a batch", graph)
    assert real.graphs == ["3", "-1", "-1", "4", "-1", "5", "-1"]
    np.testing.assert_allclose(found[0], expected(Row([1] * 4)), atol=1e-3)
    [warned] = [r.message for r in caplog.records if "cannot be captured" in r.message]
    assert warned.startswith("a batch is launched piece by piece")
    place.close()


def test_a_runtime_s_own_words_for_a_lost_device_are_understood(device: CudaDouble) -> None:
    place = place_on(device)
    words = "CUDA failure 700: an illegal memory access was encountered ; GPU=0"
    assert isinstance(place.failure(RuntimeError(words), "a step"), DeviceLostError)
    place.close()
    on_host = cpu_place().failure(RuntimeError(words), "a step")
    assert type(on_host) is DeviceError


class Original:
    """An engine on the double, and what transformers says after each token of the sequences."""

    def __init__(self, engine: OnnxRuntimeDecoder, logits: list[NDArray[np.float32]]) -> None:
        self.engine, self.logits, self.tolerance = engine, logits, TOLERANCE

    def check(self, found: NDArray[np.float32], places: Sequence[tuple[int, int]]) -> None:
        wanted = [self.logits[sequence][place] for sequence, place in places]
        np.testing.assert_allclose(found, np.array(wanted), atol=self.tolerance)

    def prefill(self, sequence: int, slot: int, end: int) -> None:
        tokens = SEQUENCES[sequence][:end]
        found = run_step(self.engine, StepItem([slot], 0, tokens, end))
        self.check(found, [(sequence, place) for place in range(end)])


@pytest.fixture(
    params=[
        ("llama", GROUPED, False),
        ("llama", GROUPED, True),
        ("gemma2", GROUPED, True),
        ("llama", OWN_OPERATORS, True),
    ],
    ids=["grouped", "with graphs", "with bounds and windows", "by the graph's own operators"],
)
def original(
    request: pytest.FixtureRequest, decoder: Decoder, device: CudaDouble
) -> Iterator[Original]:
    family, grouped, has_graphs = request.param
    made = decoder(family)
    spec = made.spec(attention="slots", max_step_tokens=96)  # noqa: F811
    with OnnxRuntimeDecoder(spec, place_on(device, grouped, has_graphs=has_graphs)) as engine:
        yield Original(engine, [made.original_logits(tokens) for tokens in SEQUENCES])


def test_slots_come_and_go_and_keep_what_they_hold(original: Original) -> None:
    """Rows are swapped on the device while steps of one and of several sequences alternate."""
    lengths, slots = {0: 40, 1: 3, 2: 77, 3: 20}, {0: 2, 1: 0, 2: 3, 3: 1}
    for sequence, length in lengths.items():
        original.prefill(sequence, slots[sequence], length)
    for step in range(12):
        chosen = [(step + i) % 4 for i in range(1 + step % 4)]
        items = [
            StepItem([slots[s]], lengths[s], SEQUENCES[s][lengths[s] : lengths[s] + 1])
            for s in chosen
        ]
        original.check(run_step(original.engine, *items), [(s, lengths[s]) for s in chosen])
        for s in chosen:
            lengths[s] += 1


def test_logits_are_reduced_to_their_best_in_steps_of_every_kind(original: Original) -> None:
    for slot in range(4):
        item = StepItem([slot], 0, SEQUENCES[slot][:20], 3, is_reduced=True)
        check_reduction(reduce_step(original.engine, item), NUM_BEST)
    lengths = [20] * 4
    for step in range(12):
        slots = range(1 + step % 4)
        items = [
            StepItem([s], lengths[s], SEQUENCES[s][lengths[s] : lengths[s] + 1], 1, s != 1)
            for s in slots
        ]
        found = reduce_step(original.engine, *items)
        original.check(found.fetch(0, len(items)), [(s, lengths[s]) for s in slots])
        check_reduction(found, NUM_BEST)
        for slot in slots:
            lengths[slot] += lengths[slot] + 1 < len(SEQUENCES[slot])


def test_a_copied_slot_goes_on_by_itself_and_a_cleared_one_holds_nothing(
    original: Original,
) -> None:
    original.prefill(0, slot=1, end=40)
    original.engine.copy_block(1, 3)
    original.prefill(2, slot=1, end=60)
    found = run_step(original.engine, StepItem([3], 40, SEQUENCES[0][40:70], 30))
    original.check(found, [(0, place) for place in range(40, 70)])
    original.engine.clear_blocks([1, 3])
    one = run_step(original.engine, StepItem([1], 9, SEQUENCES[0][9:10]))
    np.testing.assert_array_equal(
        run_step(original.engine, StepItem([3], 9, SEQUENCES[0][9:10])), one
    )


@pytest.mark.parametrize("grouped", [GROUPED, OWN_OPERATORS], ids=["grouped", "own operators"])
def test_what_is_no_number_stays_with_its_own_sequence(
    grouped: frozenset[Element], decoder: Decoder, device: CudaDouble, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    from tests.fixtures.decoder_exports import export_of
    from tests.fixtures.decoders import make_decoder

    poison, checkpoint = 7, make_decoder("llama", tmp_path / "original")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.embed_tokens.weight"][poison] = np.nan
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    tokens = [t for t in SEQUENCES[0] if t != poison][:50]
    made = export_of(checkpoint, tmp_path / "export").spec(attention="slots")
    with OnnxRuntimeDecoder(made, place_on(device, grouped)) as engine:
        wanted = run_step(engine, StepItem([0], 0, tokens, 50))
        assert np.isnan(run_step(engine, StepItem([1], 0, [3, poison] * 30))).all()
        np.testing.assert_allclose(
            run_step(engine, StepItem([1], 0, tokens, 50)), wanted, atol=1e-6
        )
        # Beside a longer one, so that attention sees beyond the shorter one's end.
        run_step(engine, StepItem([2], 0, [3, poison] * 30))
        run_step(engine, StepItem([2], 0, tokens[:5], 0))
        pair = StepItem([1], 50, [4]), StepItem([2], 5, tokens[5:6])
        assert np.isfinite(run_step(engine, *pair)).all()


def test_a_graph_in_half_precision_has_half_its_cache(
    decoder: Decoder, device: CudaDouble, tmp_path: Path
) -> None:
    made = decoder("llama")
    to_half(made.folder / "model.onnx", tmp_path / "model.onnx", "fp16")
    spec = made.spec(  # noqa: F811
        model=tmp_path / "model.onnx",
        precision="fp16",
        cache_precision="fp16",
        attention="slots",
        max_step_tokens=96,
    )
    with OnnxRuntimeDecoder(spec, place_on(device)) as engine:
        original = Original(engine, [made.original_logits(tokens) for tokens in SEQUENCES])
        original.tolerance = 2e-2
        original.prefill(0, slot=1, end=40)
        original.prefill(2, slot=0, end=50)
        items = [StepItem([1], 40, SEQUENCES[0][40:41]), StepItem([0], 50, SEQUENCES[2][50:51])]
        original.check(run_step(engine, *items), [(0, 40), (2, 50)])


@pytest.mark.parametrize("grouped", [GROUPED, OWN_OPERATORS], ids=["grouped", "own"])
def test_the_host_s_number_goes_to_the_device_only_where_a_slot_is_cut(
    grouped: frozenset[Element], decoder: Decoder
) -> None:
    """A copy between the two, and a step is not to be captured."""
    made = decoder("llama").spec(attention="slots")
    lowered = lower_decoder(made.model, made.layers, grouped, on_device=True)
    graph = onnx.load_from_string(lowered.graph).graph
    readers = {node.op_type for node in graph.node if LENGTH_INPUT in node.input}
    assert lowered.is_grouped == bool(grouped)
    assert readers == ({"GroupQueryAttention"} if grouped else {"Unsqueeze"})


def test_a_warm_up_keeps_to_what_a_slot_holds(device: CudaDouble, decoder: Decoder) -> None:
    made = decoder("llama").spec(attention="slots", max_step_tokens=8192, max_tokens=48)
    with OnnxRuntimeDecoder(made, place_on(device)) as engine:
        warm_up_decoder(engine, "tiny", lambda: None)
        assert max(step.num_tokens for step in time_steps(engine, lambda: None)) == 48


def test_without_a_word_the_cache_takes_half_of_what_the_device_has_left(
    decoder: Decoder, device: CudaDouble
) -> None:
    spec = decoder("llama").spec(attention="slots", cache_bytes=0, max_sequences=500)  # noqa: F811
    device.free_bytes = 1 << 22
    with OnnxRuntimeDecoder(spec, place_on(device)) as engine:
        limits = engine.limits
        row = (
            4
            * limits.block_size
            * sum(x.num_kv_heads * (x.key_dim + x.value_dim) for x in spec.layers)
        )
        assert limits.num_blocks == (1 << 21) // row > 1


def test_a_cache_of_another_precision_than_there_is_here_is_refused(decoder: Decoder) -> None:
    spec: DecoderSpec = decoder("llama").spec(attention="slots", cache_precision="fp16")  # noqa: F811
    with pytest.raises(PlanMismatchError, match="CACHE_PRECISION=fp32"):
        OnnxRuntimeDecoder(spec, cpu_place())


def test_numbers_of_any_width_come_out_in_fp32() -> None:
    numbers = np.array([1.5, -0.25, 3.0e38, 0.0], np.float32)
    bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    np.testing.assert_allclose(to_fp32(bits, BF16), numbers, rtol=0.01)
    assert to_fp32(numbers[:2].astype(np.float16), FP16).tolist() == [1.5, -0.25]
    assert to_fp32(numbers, FP32) is numbers


def test_a_gpu_s_place_asks_for_what_cuda_needs() -> None:
    device = CudaDouble()
    exact, fast = cuda_place(device, "fp32"), cuda_place(device, "tf32")
    assert exact.options["use_tf32"] == "0"
    assert fast.options["use_tf32"] == "1"
    assert exact.options["user_compute_stream"] == "7"
    assert (exact.device.name, exact.device.has_bf16, exact.device.has_fp16) == (
        *("Double GPU", True, True),
    )
    assert FP32 not in exact.grouped
    exact.check_precision("bf16", ("int8",))
    with pytest.raises(PlanMismatchError, match=r"fp8 on Double GPU; build .* fp16 or int8"):
        exact.check_precision("fp8", ("int8",))


def test_packages_that_overwrite_each_other_are_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_installed()
    versions = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    module = "enginehouse_server.engine.onnxruntime.device.version"
    monkeypatch.setattr(module, versions.__getitem__)
    with pytest.raises(PlanMismatchError, match=r"pip uninstall -y onnxruntime onnxruntime-gpu"):
        describe_device()


def test_a_processor_is_described_by_its_provider() -> None:
    found = describe_device()
    assert found.runtime_version == ort.__version__
    assert found.provider in ("CPUExecutionProvider", "CUDAExecutionProvider")


def test_a_provider_that_is_not_there_is_no_silent_fallback(spec: EncoderSpec) -> None:  # noqa: F811
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider, so nothing is missing here")
    device = CudaDouble()
    with pytest.raises(PlanMismatchError, match=r"'CUDAExecutionProvider' is not in"):
        OnnxRuntimeEncoder(spec, cuda_place(device, "fp32"))
    assert device.is_closed
    with closing(OnnxRuntimeEncoder(spec, cpu_place())) as engine:
        assert len(engine.lanes) == 2
