"""An encoder as a plan, on the double: batches, lanes, graphs, and what is refused."""

import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from enginehouse_server.engine.base import EncoderEngine, EncoderSpec, Shape
from enginehouse_server.engine.create import attention_for, create_encoder, describe
from enginehouse_server.errors import DeviceError, DeviceLostError, PlanMismatchError
from tests.fixtures.sums import Row, expected, random_rows, write_sums
from tests.fixtures.trt_double import DoubleModule, install
from tests.fixtures.trt_double.plans import encoder_plan

SHORT, LONG = ((1, 1), (8, 16)), ((1, 17), (4, 64))


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    folder = tmp_path_factory.mktemp("encoder")
    return encoder_plan(write_sums(folder), folder / "model.plan", SHORT, LONG)


@pytest.fixture
def engine(double: DoubleModule, spec: EncoderSpec) -> Iterator[EncoderEngine]:
    with closing(create_encoder("tensorrt", spec)) as made:
        yield made


def _ask(engine: EncoderEngine, rows: list[Row], shape: Shape, lane: int = 0) -> None:
    """Computes a batch and checks its logits."""
    engine.lanes[lane].start(rows, shape)
    found = engine.lanes[lane].wait()
    np.testing.assert_allclose(found, [expected(row) for row in rows], atol=1e-3)


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_says_what_runs_it(
    flavour: str, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install(monkeypatch, flavour=flavour)
    with closing(create_encoder(flavour, spec)) as engine:
        device = describe(flavour)
        assert engine.backend == flavour
        assert (engine.runtime_version, engine.device) == (device.runtime_version, device.name)
        assert device.has_bf16
    assert attention_for(flavour, []) == "slots"
    assert not module.faults


def test_rtx_s_kernels_are_compiled_before_a_graph_keeps_them(
    spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install(monkeypatch, flavour="tensorrt-rtx")
    with closing(create_encoder("tensorrt-rtx", spec)) as engine:
        for _ in range(3):  # as it is, captured, and launched: the double refuses another strategy
            _ask(engine, random_rows(3, seed=1), Shape(4, 16))
        assert module.device.graphs[0].num_launches == 2
    assert not module.faults


def test_what_rtx_says_cannot_be_captured_is_run_as_it_is(
    spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = install(monkeypatch, flavour="tensorrt-rtx")
    with closing(create_encoder("tensorrt-rtx", replace(spec, num_lanes=1))) as engine:
        module.engines[0].is_capturable = False
        for _ in range(3):
            _ask(engine, random_rows(3, seed=1), Shape(4, 16))
    assert not module.device.graphs
    assert sum("cannot be captured" in r.message for r in caplog.records) == 1
    assert not module.faults


def test_rows_get_their_own_logits_in_every_profile_and_shape(engine: EncoderEngine) -> None:
    shapes = [Shape(1, 16), Shape(4, 16), Shape(8, 16), Shape(2, 20), Shape(4, 64), Shape(1, 16)]
    for _ in range(3):  # as it is, captured, and launched
        for i, shape in enumerate(shapes):
            _ask(engine, random_rows(max(1, shape.batch - 1), seed=i), shape)


def test_a_shape_is_captured_at_its_second_run_by_each_lane(
    engine: EncoderEngine, double: DoubleModule
) -> None:
    for num_runs, num_graphs in ((1, 0), (2, 1), (3, 1)):
        _ask(engine, random_rows(2, num_runs), Shape(2, 16))
        assert len(double.device.graphs) == num_graphs
    _ask(engine, random_rows(2, 0), Shape(2, 16), lane=1)
    _ask(engine, random_rows(2, 0, longest=8), Shape(2, 8))
    assert len(double.device.graphs) == 1, "another lane and another shape have graphs of their own"
    _ask(engine, random_rows(2, 0), Shape(2, 16), lane=1)
    _ask(engine, random_rows(2, 0, longest=8), Shape(2, 8))
    assert len(double.device.graphs) == 3
    assert [g.num_launches for g in double.device.graphs] == [2, 1, 1]


def test_no_more_graphs_are_kept_than_shapes_were_announced(
    double: DoubleModule, spec: EncoderSpec
) -> None:
    with closing(create_encoder("tensorrt", replace(spec, num_shapes=2, num_lanes=1))) as engine:
        for length in (8, 9, 10, 11) * 3:
            _ask(engine, random_rows(1, length, longest=8), Shape(1, length))
        assert len(double.device.graphs) == 2
        assert len(double.engines[0].contexts) == 3, "a context a graph, and one for all else"


def test_results_with_graphs_and_without_are_equal(
    spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for has_graphs in (True, False):
        module = install(monkeypatch, has_graphs=has_graphs)
        with closing(create_encoder("tensorrt", spec)) as engine:
            lane = engine.lanes[0]
            for seed in range(4):
                lane.start(random_rows(3, seed), Shape(4, 16))
                found.append(lane.wait())
        assert len(module.device.graphs) == has_graphs
        assert not module.faults
    np.testing.assert_array_equal(found[:4], found[4:])
    said = [r.message for r in caplog.records if "without CUDA graphs" in r.message]
    assert len(said) == spec.num_lanes, "said once by each lane"


def test_a_capture_that_is_refused_is_said_once_and_nothing_is_lost(
    engine: EncoderEngine, double: DoubleModule, caplog: pytest.LogCaptureFixture
) -> None:
    double.device.num_refused_captures = 1
    for seed in range(4):
        _ask(engine, random_rows(2, seed), Shape(2, 16))
        _ask(engine, random_rows(2, seed, longest=8), Shape(2, 8))
    assert not double.device.graphs
    said = [r.message for r in caplog.records if "without CUDA graphs" in r.message]
    assert len(said) == 1
    assert "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" in said[0]


def test_a_lane_s_batch_is_copied_and_enqueued_while_the_other_computes(
    engine: EncoderEngine, double: DoubleModule
) -> None:
    device = double.device
    device.gate.clear()  # the device is busy: nothing comes to its end
    device.log.clear()
    first, second = random_rows(2, 1), random_rows(2, 2)
    engine.lanes[0].start(first, Shape(2, 16))
    engine.lanes[1].start(second, Shape(2, 16))
    enqueued = list(device.log)
    device.gate.set()
    assert [what for what, _ in enqueued] == ["copy in", "copy in", "run", "copy out"] * 2
    assert [number for _, number in enqueued] == [0] * 4 + [1] * 4
    for lane, rows in enumerate((first, second)):
        found = engine.lanes[lane].wait()
        np.testing.assert_allclose(found, [expected(row) for row in rows], atol=1e-3)


def test_lanes_driven_by_threads_keep_apart(engine: EncoderEngine) -> None:
    faults: list[BaseException] = []

    def drive(lane: int) -> None:
        try:
            for i in range(30):
                shape = Shape(4, 16) if i % 3 else Shape(2, 32)
                _ask(engine, random_rows(2, 100 * lane + i), shape, lane)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=drive, args=(lane,)) for lane in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not faults


def test_a_shape_of_no_profile_is_an_error_of_its_own(engine: EncoderEngine) -> None:
    with pytest.raises(DeviceError, match=r"no batch of 5 rows of 20 tokens, but \[1, 1\] to"):
        engine.lanes[0].start(random_rows(5, 0), Shape(5, 20))
    _ask(engine, random_rows(2, 0), Shape(2, 16))


def test_an_enqueue_that_is_refused_is_an_error_with_the_runtime_s_reason(
    engine: EncoderEngine, double: DoubleModule
) -> None:
    _ask(engine, random_rows(2, 0), Shape(2, 16))
    double.engines[0].num_refused_runs = 1
    with pytest.raises(DeviceError, match="enqueuing a run of the plan failed: no kernel"):
        engine.lanes[0].start(random_rows(2, 0, longest=8), Shape(2, 8))
    _ask(engine, random_rows(2, 0, longest=8), Shape(2, 8))


def test_a_fault_of_the_device_is_an_error_and_a_lost_one_says_so(
    spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = install(monkeypatch)
    engine = create_encoder("tensorrt", spec)
    lane = engine.lanes[0]
    lane.start([Row([99])], Shape(1, 4))  # beyond the table
    with pytest.raises(DeviceError, match="computing failed"):
        lane.wait()
    double.device.lose()
    with pytest.raises(DeviceLostError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        engine.lanes[1].start(random_rows(1, 0), Shape(1, 16))
    engine.close()
    assert double.device.is_closed


@pytest.mark.parametrize("content", [b"no plan", b""])
def test_a_file_that_is_no_plan_is_refused_with_both_versions(
    double: DoubleModule, spec: EncoderSpec, tmp_path: Path, content: bytes
) -> None:
    broken = tmp_path / "model.plan"
    broken.write_bytes(content)
    reason = r"11\.4\.0\.106 cannot read the plan .*magic number" if content else "cannot be read"
    with pytest.raises(PlanMismatchError, match=reason):
        create_encoder("tensorrt", replace(spec, model=broken))


def test_a_plan_of_another_version_or_gpu_is_refused_before_it_is_read(
    spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install(monkeypatch, version="11.5.0.1")
    with pytest.raises(PlanMismatchError, match=r"11\.4\.0\.106, and here is 11\.5\.0\.1"):
        create_encoder("tensorrt", spec)
    install(monkeypatch, compute_capability=(8, 9))
    with pytest.raises(PlanMismatchError, match="runs on sm90, and Double GPU is sm89"):
        create_encoder("tensorrt", spec)
    assert not module.engines
    assert module.device.is_closed


def test_a_plan_that_does_not_fit_is_refused_with_the_figures(
    spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install(monkeypatch, memory_bytes=spec.model.stat().st_size)
    with pytest.raises(PlanMismatchError, match=r"at least .* MiB of the device, which has"):
        create_encoder("tensorrt", spec)
    assert not module.engines
    assert module.device.is_closed
    module = install(monkeypatch, memory_bytes=spec.model.stat().st_size + 20_000)
    with pytest.raises(PlanMismatchError, match=r"of activations, .* of staging.*lower --lanes"):
        create_encoder("tensorrt", spec)
    assert module.device.is_closed
    assert not module.faults


def test_a_plan_of_other_inputs_is_refused(double: DoubleModule, spec: EncoderSpec) -> None:
    with pytest.raises(PlanMismatchError, match="build the model again"):
        create_encoder("tensorrt", replace(spec, inputs=("input_ids",)))


def test_without_tensorrt_it_says_what_to_install(spec: EncoderSpec) -> None:
    for backend in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(PlanMismatchError, match=r"install"):
            create_encoder(backend, spec)


def test_what_the_runtime_says_is_logged(
    double: DoubleModule, spec: EncoderSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "model.plan"
    broken.write_bytes(b"no plan")
    with caplog.at_level(logging.DEBUG), pytest.raises(PlanMismatchError):
        create_encoder("tensorrt", replace(spec, model=broken))
    assert [r.levelname for r in caplog.records if "magic number" in r.message] == ["ERROR"]
