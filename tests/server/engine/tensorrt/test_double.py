"""The double refuses what CUDA and TensorRT would: else tests on it would prove nothing."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from enginehouse_server.engine.base import EncoderSpec
from enginehouse_server.engine.cuda import CudaBuffer, PinnedBuffer
from enginehouse_server.engine.decoder import DecoderSpec
from enginehouse_server.errors import DeviceError
from tests.conftest import Decoder
from tests.fixtures.sums import LABELS, write_sums
from tests.fixtures.trt_double import DoubleDevice
from tests.fixtures.trt_double.engine import AllocationStrategy, DoubleContext, DoubleEngine
from tests.fixtures.trt_double.plan_file import read_plan
from tests.fixtures.trt_double.plans import decoder_plan, encoder_plan


@pytest.fixture
def device() -> Iterator[DoubleDevice]:
    with closing(DoubleDevice()) as made:
        yield made


@pytest.fixture
def held(device: DoubleDevice) -> Iterator[DoubleDevice]:
    """A device on which nothing comes to its end before the test does."""
    device.gate.clear()
    yield device
    device.gate.set()


def _buffers(device: DoubleDevice) -> tuple[CudaBuffer, PinnedBuffer]:
    return device.allocate(1000), device.allocate_pinned(1000)


def test_bytes_go_in_within_and_out_in_the_stream_s_order(device: DoubleDevice) -> None:
    here, there = _buffers(device)
    back = device.allocate_pinned(1000)
    stream, done = device.stream(), device.event()
    kept, content = there.array((1000,), np.uint8), back.array((1000,), np.uint8)
    kept[:] = np.arange(1000) % 251
    device.copy_to_device(here.address, there.address, 400, stream)
    device.copy_on_device(here.address + 512, here.address, 400, stream)
    device.fill(here.address, 7, 100, stream)
    device.copy_to_host(back.address, here.address, 1000, stream)
    stream.record(done)
    done.synchronize()
    assert done.is_done
    np.testing.assert_array_equal(content[:100], 7)
    np.testing.assert_array_equal(content[100:400], kept[100:400])
    np.testing.assert_array_equal(content[512:912], kept[:400])
    assert not device.faults


Misuse = Callable[[DoubleDevice, CudaBuffer, PinnedBuffer], None]


def _beyond(device: DoubleDevice, here: CudaBuffer, there: PinnedBuffer) -> None:
    device.copy_to_device(here.address + 1, there.address, 1000, device.stream())


def _unpinned(device: DoubleDevice, here: CudaBuffer, there: PinnedBuffer) -> None:
    array = np.zeros(100, np.uint8)
    device.copy_to_device(here.address, array.ctypes.data, 100, device.stream())


def _the_wrong_way(device: DoubleDevice, here: CudaBuffer, there: PinnedBuffer) -> None:
    device.copy_to_device(there.address, here.address, 100, device.stream())


def _after_free(device: DoubleDevice, here: CudaBuffer, there: PinnedBuffer) -> None:
    here.free()
    device.fill(here.address, 0, 10, device.stream())


def _onto_itself(device: DoubleDevice, here: CudaBuffer, there: PinnedBuffer) -> None:
    device.copy_on_device(here.address + 100, here.address, 101, device.stream())


@pytest.mark.parametrize(
    "misuse", [_beyond, _unpinned, _the_wrong_way, _after_free, _onto_itself], ids=str
)
def test_a_wrong_copy_is_refused(device: DoubleDevice, misuse: Misuse) -> None:
    with pytest.raises(DeviceError):
        misuse(device, *_buffers(device))
    assert len(device.faults) == 1


def test_pinned_memory_that_changes_before_it_is_copied_is_noticed(held: DoubleDevice) -> None:
    here, there = _buffers(held)
    stream = held.stream()
    held.copy_to_device(here.address, there.address, 100, stream)
    there.array((100,), np.uint8)[5] ^= 1
    held.gate.set()
    with pytest.raises(DeviceError, match="changed before it was copied"):
        stream.synchronize()


def test_results_read_too_early_are_no_numbers(held: DoubleDevice) -> None:
    here, there = _buffers(held)
    there.array((10,), np.float32)[:] = 1
    held.copy_to_host(there.address, here.address, 40, held.stream())
    assert np.isnan(there.array((10,), np.float32)).all()


def test_memory_in_use_is_not_given_back(held: DoubleDevice) -> None:
    here, there = _buffers(held)
    held.copy_to_device(here.address, there.address, 100, held.stream())
    for memory in (here, there):
        with pytest.raises(DeviceError, match="copy in is using it"):
            memory.free()


def test_two_streams_on_one_memory_must_be_ordered(held: DoubleDevice) -> None:
    here, _ = _buffers(held)
    one, other, done = held.stream(), held.stream(), held.event()
    held.fill(here.address, 1, 100, one)
    held.fill(here.address + 512, 1, 100, other)  # elsewhere
    with pytest.raises(DeviceError, match="fill on stream 1 touches what fill on stream 0"):
        held.fill(here.address + 50, 2, 100, other)
    one.record(done)
    other.wait_for(done)
    held.fill(here.address + 50, 2, 100, other)
    held.gate.set()
    other.synchronize()


def test_a_graph_does_again_what_was_captured_and_nothing_before(device: DoubleDevice) -> None:
    here, there = _buffers(device)
    stream = device.stream()

    def enqueue() -> None:
        device.fill(here.address, 3, 100, stream)
        device.copy_to_host(there.address, here.address, 100, stream)

    there.array((100,), np.uint8)[:] = 0
    graph = device.capture(stream, enqueue)
    stream.synchronize()
    assert not there.array((100,), np.uint8).any()
    graph.launch(stream)
    stream.synchronize()
    assert (there.array((100,), np.uint8) == 3).all()
    graph.close()
    with pytest.raises(DeviceError, match="after it was closed"):
        graph.launch(stream)


def test_a_capture_may_not_wait(device: DoubleDevice) -> None:
    stream = device.stream()
    with pytest.raises(DeviceError, match="waited for in a capture"):
        device.capture(stream, stream.synchronize)
    stream.synchronize()


class _Setting:
    """An engine, and memory for one run of it."""

    def __init__(self, device: DoubleDevice, spec: EncoderSpec | DecoderSpec) -> None:
        self.errors: list[str] = []
        self.engine = DoubleEngine(read_plan(spec.model.read_bytes()), device, self.errors.append)
        self.device, self.stream = device, device.stream()
        self.memory = device.allocate(1 << 22)

    def context(self, profile: int = 0) -> DoubleContext:
        made = self.engine.create_execution_context(AllocationStrategy.USER_MANAGED)
        made.set_device_memory(self.memory.address, 1 << 14)
        assert made.set_optimization_profile_async(profile, self.stream.handle)
        return made

    def refused(self, done: bool, reason: str) -> None:
        assert not done
        assert reason in self.errors[-1]
        assert reason in self.device.faults[-1]


@pytest.fixture
def setting(device: DoubleDevice, tmp_path: Path) -> _Setting:
    spec = encoder_plan(write_sums(tmp_path), tmp_path / "plan", ((1, 1), (4, 16)))
    return _Setting(device, spec)


def _bound(setting: _Setting) -> DoubleContext:
    """Ready to run 2 rows of 4 tokens."""
    context = setting.context()
    for i, name in enumerate(("input_ids", "attention_mask", "logits")):
        assert context.set_tensor_address(name, setting.memory.address + (1 << 15) + 1024 * i)
    for name in ("input_ids", "attention_mask"):
        assert context.set_input_shape(name, (2, 4))
    setting.device.fill(setting.memory.address + (1 << 15), 0, 4096, setting.stream)
    return context


def test_a_run_that_is_fully_specified_runs(setting: _Setting) -> None:
    context = _bound(setting)
    assert context.execute_async_v3(setting.stream.handle)
    setting.stream.synchronize()
    assert not setting.device.faults
    assert setting.engine.get_tensor_shape("logits") == [-1, LABELS]


def test_a_run_that_is_not_is_refused(setting: _Setting) -> None:
    context, handle = setting.context(), setting.stream.handle
    setting.refused(context.set_input_shape("input_ids", (5, 4)), "outside profile 0")
    setting.refused(context.set_input_shape("tokens", (1, 4)), "no input tokens")
    setting.refused(context.execute_async_v3(handle), "have no shape")
    for name in ("input_ids", "attention_mask"):
        context.set_input_shape(name, (2, 4))
    setting.refused(context.execute_async_v3(handle), "have no address")
    setting.refused(context.set_tensor_address("logits", setting.memory.address + 8), "aligned")
    setting.refused(context.set_optimization_profile_async(3, handle), "no profile 3")


def test_a_run_in_wrong_memory_is_refused(setting: _Setting) -> None:
    context, handle = _bound(setting), setting.stream.handle
    setting.refused(context.execute_async_v3(0), "default stream")
    context.set_device_memory(setting.memory.address, 100)
    setting.refused(context.execute_async_v3(handle), "was given less")
    context.set_device_memory(setting.memory.address, 1 << 14)
    context.set_tensor_address("logits", setting.memory.address + (1 << 22))
    setting.refused(context.execute_async_v3(handle), "reach beyond the end")
    context.set_tensor_address("logits", setting.memory.address + (1 << 23))
    setting.refused(context.execute_async_v3(handle), "is no memory")
    freed = setting.device.allocate(1 << 12)
    freed.free()
    context.set_tensor_address("logits", freed.address)
    setting.refused(context.execute_async_v3(handle), "given back")


def test_a_capture_before_the_first_run_is_refused(setting: _Setting) -> None:
    context, stream = _bound(setting), setting.stream
    stream.synchronize()
    setting.device.capture(stream, lambda: _run(context, stream.handle, accepted=False))
    assert "before it was enqueued once" in setting.device.faults[-1]
    _run(context, stream.handle, accepted=True)
    graph = setting.device.capture(stream, lambda: _run(context, stream.handle, accepted=True))
    graph.launch(stream)
    context.set_input_shape("input_ids", (1, 4))
    with pytest.raises(DeviceError, match="whose context has changed"):
        graph.launch(stream)


def _run(context: DoubleContext, handle: int, *, accepted: bool) -> None:
    assert context.execute_async_v3(handle) is accepted


def test_contexts_that_share_memory_on_two_streams_are_noticed(setting: _Setting) -> None:
    one, other = _bound(setting), _bound(setting)
    setting.stream.synchronize()
    setting.device.gate.clear()
    assert one.execute_async_v3(setting.stream.handle)
    with pytest.raises(DeviceError, match="run on stream 1 touches what run on stream 0"):
        other.execute_async_v3(setting.device.stream().handle)
    second = setting.device.stream()
    setting.refused(one.execute_async_v3(second.handle), "two streams at once")
    setting.device.gate.set()


def test_a_cache_that_is_not_updated_in_place_is_refused(
    device: DoubleDevice, decoder: Decoder, tmp_path: Path
) -> None:
    setting = _Setting(device, decoder_plan(decoder("llama").spec(), tmp_path))
    context, engine = setting.context(), setting.engine
    room = device.allocate(1 << 22)
    for i, name in enumerate((*engine.inputs, *engine.outputs)):
        assert context.set_tensor_address(name, room.address + 65536 * i)
    for name in engine.inputs:
        least, _, _ = engine.get_tensor_profile_shape(name, 0)
        assert context.set_input_shape(name, tuple(least))
    setting.refused(context.execute_async_v3(setting.stream.handle), "is not in the memory of past")
