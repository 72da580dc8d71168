"""What every encoder promises, whatever runs it."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from enginehouse_server.engine.base import EncoderEngine, EncoderSpec, Shape
from enginehouse_server.engine.create import BACKENDS, create_encoder, describe
from enginehouse_server.errors import DeviceError, PlanMismatchError

VOCABULARY, WIDTH, LABELS = 64, 32, 3
_DRAW = np.random.default_rng(0)
TABLE = _DRAW.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
HEAD = _DRAW.normal(size=(WIDTH, LABELS)).astype(np.float32)


class Row(NamedTuple):
    ids: Sequence[int]
    type_ids: Sequence[int] | None = None


def expected(row: Row) -> NDArray[np.float32]:
    """The sum of the tokens' embeddings through the head."""
    found: NDArray[np.float32] = TABLE[list(row.ids)].sum(0) @ HEAD
    return found


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    """A graph that sums embeddings where the mask is set; a token beyond the table is an error."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_column"]),
        helper.make_node("Mul", ["embedded", "mask_column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "second"], ["summed"], keepdims=0),
        helper.make_node("MatMul", ["summed", "head"], ["logits"]),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "table": TABLE,
        "head": HEAD,
        "last": np.array([-1], np.int64),
        "second": np.array([1], np.int64),
    }
    sizes = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "sums",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, sizes)
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", LABELS])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    file = tmp_path_factory.mktemp("encoder") / "model.onnx"
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[opset]), file)
    return EncoderSpec(
        model=file,
        precision="fp32",
        inputs=("input_ids", "attention_mask"),
        pad_id=0,
        max_batch_tokens=256,
        num_shapes=8,
        num_threads=2,
        num_lanes=2,
    )


@pytest.fixture(params=BACKENDS)
def engine(request: pytest.FixtureRequest, spec: EncoderSpec) -> Iterator[EncoderEngine]:
    with closing(create_encoder(request.param, spec)) as made:
        yield made


def _rows(count: int, seed: int) -> list[Row]:
    draw = np.random.default_rng(seed)
    return [Row(draw.integers(0, VOCABULARY, draw.integers(1, 16)).tolist()) for _ in range(count)]


def test_an_engine_says_what_runs_it(engine: EncoderEngine) -> None:
    device = describe(engine.backend)
    assert (engine.runtime_version, engine.device) == (device.runtime_version, device.name)
    assert engine.device


def test_rows_get_their_own_logits_whatever_the_padding(engine: EncoderEngine) -> None:
    lane = engine.lanes[0]
    for count, shape in ((1, Shape(1, 16)), (3, Shape(4, 16)), (4, Shape(4, 20))):
        rows = _rows(count, seed=count)
        lane.start(rows, shape)
        found = lane.wait()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [expected(row) for row in rows], atol=1e-3)


def test_logits_are_the_caller_s_own(engine: EncoderEngine) -> None:
    lane, shape = engine.lanes[0], Shape(2, 16)
    first, second = _rows(2, seed=5), _rows(2, seed=6)
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
                rows = _rows(3, seed=100 * number + i)
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
    engine.lanes[0].start(_rows(1, seed=0), Shape(1, 16))
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
    with pytest.raises(PlanMismatchError, match="no backend 'tensorrt'; it has: openvino, onnx"):
        describe("tensorrt")
