"""Both CUDA bindings on a real device."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from enginehouse_server.engine.cuda import CudaDevice
from enginehouse_server.errors import DeviceError, UnsupportedError

pytestmark = pytest.mark.gpu
SIZE = 1 << 20


def test_a_device_says_what_it_is(device: CudaDevice) -> None:
    info = device.info
    assert info.name
    assert info.compute_capability >= (7, 5)
    assert float(info.driver_version) >= 12
    assert device.memory().free <= device.memory().total
    device.check()


def test_bytes_go_to_the_device_around_it_and_back(device: CudaDevice) -> None:
    stream, pinned = device.stream(), device.allocate_pinned(2 * SIZE)
    one, other = device.allocate(SIZE), device.allocate(SIZE)
    assert one.address % 256 == 0
    array = pinned.array((2, SIZE), np.uint8)
    array[0] = np.random.default_rng(0).integers(0, 256, SIZE)
    device.copy_to_device(one.address, pinned.address, SIZE, stream)
    device.fill(other.address, 7, SIZE, stream)
    device.copy_on_device(other.address, one.address, SIZE // 2, stream)
    device.copy_to_host(pinned.address + SIZE, other.address, SIZE, stream)
    stream.synchronize()
    assert (array[1, : SIZE // 2] == array[0, : SIZE // 2]).all()
    assert (array[1, SIZE // 2 :] == 7).all()
    for buffer in (one, other, pinned):
        buffer.free()
        buffer.free()


def test_streams_wait_for_events_of_others(device: CudaDevice) -> None:
    one, other, written = device.stream(), device.stream(), device.event()
    assert written.is_done
    buffer, pinned = device.allocate(SIZE), device.allocate_pinned(SIZE)
    for byte in range(1, 200):
        device.fill(buffer.address, byte, SIZE, one)
    one.record(written)
    other.wait_for(written)
    device.copy_to_host(pinned.address, buffer.address, SIZE, other)
    other.synchronize()
    assert written.is_done
    assert (pinned.array((SIZE,), np.uint8) == 199).all()


def test_a_wait_keeps_neither_processor_nor_interpreter(device: CudaDevice) -> None:
    stream, size = device.stream(), 1 << 28
    buffer, ticks = device.allocate(size), 0
    stop = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.wait(0.001):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    for byte in range(1000):
        device.fill(buffer.address, byte % 256, size, stream)
    processor, wall = time.process_time(), time.monotonic()
    stream.synchronize()
    processor, wall = time.process_time() - processor, time.monotonic() - wall
    stop.set()
    thread.join()
    assert wall > 0.02, "the work was too short for this test"
    assert processor < 0.6 * wall
    assert ticks > 200 * wall


def test_any_thread_may_call(device: CudaDevice) -> None:
    found: list[BaseException | int] = []

    def call() -> None:
        try:
            buffer, stream = device.allocate(SIZE), device.stream()
            device.fill(buffer.address, 1, SIZE, stream)
            stream.synchronize()
            buffer.free()
            found.append(buffer.num_bytes)
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [SIZE] * 4


def test_captured_work_is_replayed_with_what_is_there_then(device: CudaDevice) -> None:
    stream, pinned = device.stream(), device.allocate_pinned(2 * SIZE)
    buffer, array = device.allocate(SIZE), pinned.array((2, SIZE), np.uint8)

    def enqueue() -> None:
        device.copy_to_device(buffer.address, pinned.address, SIZE, stream)
        device.copy_to_host(pinned.address + SIZE, buffer.address, SIZE, stream)

    if not device.info.has_graphs:
        with pytest.raises(UnsupportedError, match="--cuda-binding cuda-core"):
            device.capture(stream, enqueue)
        return
    array[:] = 1
    graph = device.capture(stream, enqueue)
    for byte in (3, 9):
        array[0], array[1] = byte, 0
        graph.launch(stream)
        stream.synchronize()
        assert (array[1] == byte).all()
    graph.close()


def test_a_capture_that_fails_leaves_the_stream_as_it_was(device: CudaDevice) -> None:
    if not device.info.has_graphs:
        pytest.skip("pycuda: it has no graphs")
    stream, buffer = device.stream(), device.allocate(SIZE)

    def enqueue() -> None:
        device.fill(buffer.address, 1, SIZE, stream)
        raise ValueError("a runtime gives up in the middle")

    with pytest.raises(DeviceError, match="gives up in the middle"):
        device.capture(stream, enqueue)
    device.fill(buffer.address, 2, SIZE, stream)
    stream.synchronize()
    device.check()


def test_a_capture_that_another_library_begins_keeps_no_thread_from_memory(
    device: CudaDevice,
) -> None:
    """ONNX Runtime captures in the mode that forbids it to the process."""
    driver = pytest.importorskip("cuda.bindings.driver")
    core = pytest.importorskip("cuda.core")
    begun, done = threading.Event(), threading.Event()
    ended: list[int] = []

    def capture() -> None:
        other = core.Device(0)
        other.set_current()
        stream = other.create_stream()
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        driver.cuStreamBeginCapture(stream.handle, mode)
        begun.set()
        done.wait(30)
        ended.append(int(driver.cuStreamEndCapture(stream.handle)[0]))

    thread = threading.Thread(target=capture)
    thread.start()
    try:
        assert begun.wait(30)
        device.allocate(SIZE).free()
    finally:
        done.set()
        thread.join(30)
    assert ended == [0], "it was spoilt"


def test_memory_that_there_is_not_is_refused_with_what_there_is(device: CudaDevice) -> None:
    with pytest.raises(DeviceError, match=r"MiB free, and .* MiB are asked for .*--cache-memory"):
        device.allocate(device.memory().total + SIZE)
    device.check()


_LOSE = """
from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch
from enginehouse_server.engine.cuda import open_device
from enginehouse_server.errors import DeviceError, DeviceLostError

device = open_device("{binding}")
real = Device(0)
real.set_current()
source = 'extern "C" __global__ void lose() {{ *(int *)8 = 1; }}'
options = ProgramOptions(arch="sm_%d%d" % device.info.compute_capability)
kernel = Program(source, "c++", options).compile("cubin").get_kernel("lose")
stream = real.create_stream()
launch(stream, LaunchConfig(grid=1, block=1), kernel)
try:
    stream.sync()
except Exception as error:
    print("the kernel failed:", error)
try:
    device.check()
except DeviceLostError as error:
    print("LOST", error)
try:
    device.allocate(256)
except DeviceLostError as error:
    print("LOST", error)
import os
os._exit(0)
"""


@pytest.mark.parametrize("binding", ["cuda-core", "pycuda"])
def test_a_context_that_is_lost_is_found_out(binding: str) -> None:
    code = _LOSE.format(binding=binding)
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.stdout.count("LOST the CUDA device") == 2, found.stdout + found.stderr
