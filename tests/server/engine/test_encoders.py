"""What every encoder promises, whatever runs it."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from enginehouse_server.engine.base import EncoderEngine, EncoderSpec, Shape
from enginehouse_server.engine.create import BACKENDS, create_encoder, describe
from enginehouse_server.errors import DeviceError, PlanMismatchError
from tests.fixtures.sums import VOCABULARY, Row, expected, random_rows, write_sums


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    return write_sums(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(params=BACKENDS)
def engine(request: pytest.FixtureRequest, spec: EncoderSpec) -> Iterator[EncoderEngine]:
    with closing(create_encoder(request.param, spec)) as made:
        yield made


def test_an_engine_says_what_runs_it(engine: EncoderEngine) -> None:
    device = describe(engine.backend)
    assert (engine.runtime_version, engine.device) == (device.runtime_version, device.name)
    assert engine.device


def test_rows_get_their_own_logits_whatever_the_padding(engine: EncoderEngine) -> None:
    lane = engine.lanes[0]
    for count, shape in ((1, Shape(1, 16)), (3, Shape(4, 16)), (4, Shape(4, 20))):
        rows = random_rows(count, seed=count)
        lane.start(rows, shape)
        found = lane.wait()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [expected(row) for row in rows], atol=1e-3)


def test_logits_are_the_caller_s_own(engine: EncoderEngine) -> None:
    lane, shape = engine.lanes[0], Shape(2, 16)
    first, second = random_rows(2, seed=5), random_rows(2, seed=6)
    lane.start(first, shape)
    kept = lane.wait()
    lane.start(second, shape)
    lane.wait()[:] = 0
    np.testing.assert_allclose(kept, [expected(row) for row in first], atol=1e-3)


def test_lanes_compute_side_by_side_and_each_its_own(engine: EncoderEngine) -> None:
    faults: list[BaseException] = []

    def drive(number: int) -> None:
        lane = engine.lanes[number]
        try:
            for i in range(50):
                rows = random_rows(3, seed=100 * number + i)
                lane.start(rows, Shape(4, 16))
                np.testing.assert_allclose(lane.wait(), [expected(r) for r in rows], atol=1e-3)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=drive, args=(n,)) for n in range(len(engine.lanes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(threads) == 2
    assert not faults


def test_threads_that_wait_take_no_time(engine: EncoderEngine) -> None:
    engine.lanes[0].start(random_rows(1, seed=0), Shape(1, 16))
    engine.lanes[0].wait()
    began = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_is_no_graph_is_refused_by_name(
    backend: str, spec: EncoderSpec, tmp_path: Path
) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(PlanMismatchError, match=r"model\.onnx"):
        create_encoder(backend, replace(spec, model=broken))


def test_onnxruntime_refuses_bf16_by_name(spec: EncoderSpec) -> None:
    with pytest.raises(PlanMismatchError, match=r"bf16 on a processor; build .*fp32 or int8"):
        create_encoder("onnxruntime", replace(spec, precision="bf16"))


def test_a_batch_that_onnxruntime_fails_on_is_an_error_of_its_own(spec: EncoderSpec) -> None:
    with closing(create_encoder("onnxruntime", spec)) as engine:
        lane = engine.lanes[0]
        lane.start([Row([VOCABULARY])], Shape(1, 4))
        with pytest.raises(DeviceError, match="ONNX Runtime failed on a batch"):
            lane.wait()
        row = Row([1, 2])
        lane.start([row], Shape(1, 4))
        np.testing.assert_allclose(lane.wait()[0], expected(row), atol=1e-3)


def test_an_unknown_backend_is_refused_with_what_there_is() -> None:
    with pytest.raises(PlanMismatchError, match=r"no backend 'abacus'; it has: .*openvino, onnx"):
        describe("abacus")
