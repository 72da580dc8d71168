"""A decoder on ONNX Runtime's provider for processors, over slots that it updates in place.

A step is a chunk of one sequence, or a token of each of several whose slots lie beside each other.
ONNX Runtime computes any shape without compiling it first, so nothing is padded.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import DecoderSpec, StepItem
from enginehouse_server.engine.rows import SlotRows
from enginehouse_server.engine.slots import SlotStep, lay_out, slot_limits
from enginehouse_server.errors import DeviceError, PlanMismatchError

from .cache import SlotMemory
from .device import describe_device
from .lowering import LENGTH_INPUT, lower_decoder
from .session import open_session

__all__ = ["OnnxRuntimeDecoder"]


class OnnxRuntimeDecoder:
    """A session, its slots, and a thread that runs it."""

    backend = "onnxruntime"

    def __init__(self, spec: DecoderSpec) -> None:
        """Reads, lowers and loads the model: seconds, and about the weights' size in memory.

        Raises:
            PlanMismatchError: ONNX Runtime cannot read the file, arithmetic or cache are to be of
                another precision than fp32, attention is to be paged, or the cache has no room for
                a slot.
        """
        self.limits = slot_limits(spec)
        device = describe_device()
        self.runtime_version, self.device = device.runtime_version, device.name
        if spec.precision == "bf16":
            raise PlanMismatchError(
                "ONNX Runtime does not compute in bf16 on a processor; build the model with "
                "PRECISION=fp32, int8 or int4"
            )
        if spec.attention != "slots":
            raise PlanMismatchError(
                f"ONNX Runtime attends over slots, not {spec.attention}: build the model again"
            )
        graph = lower_decoder(spec.model, spec.layers)
        self._session: ort.InferenceSession | None = open_session(
            spec.model, spec.num_threads, graph
        )
        self._binding: ort.IOBinding | None = self._session.io_binding()
        self._memory = SlotMemory(spec.layers, self.limits)
        self._rows = SlotRows(self.limits.num_blocks, self._memory.swap)
        self._logits: Logits = np.empty((0, spec.vocab_size), np.float32)
        self._thread = ThreadPoolExecutor(1, "onnxruntime-decoder")
        # Started here and now: a thread runs as urgently as the one that starts it.
        self._thread.submit(int).result()
        self._running: Future[Logits] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, items: Sequence[StepItem]) -> None:
        """Begins to compute a step; the items may be changed as soon as this returns."""
        assert self._session is not None, "the engine is closed"
        if len(items) == 1:
            first_row = self._rows.row_of(items[0].blocks[0])
            step = lay_out(items, self.limits, [0])
        else:
            first_row = 0
            rows = self._rows.gather([item.blocks[0] for item in items])
            step = lay_out(items, self.limits, rows)
        self._running = self._thread.submit(self._run, step, first_row)

    def wait(self) -> Logits:
        """Waits for the step, and gives its logits `[sum of num_logits, vocab]`.

        They are the engine's own memory: valid until the next `start`, and may be overwritten.

        Raises:
            DeviceError: The runtime failed; what the step was to write is undefined.
        """
        assert self._running is not None, "no step computes"
        running, self._running = self._running, None
        return running.result()

    def copy_block(self, source: int, target: int) -> None:
        """Copies the keys and values of a slot into another; not while a step computes."""
        self._memory.copy(self._rows.row_of(source), self._rows.row_of(target))

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Makes slots as they were before anything was written; not while a step computes."""
        self._memory.clear([self._rows.row_of(block) for block in blocks])

    def close(self) -> None:
        """Ends the thread, and releases the session and the cache."""
        self._thread.shutdown()
        self._session = None
        self._binding = None
        self._memory.release()

    def _run(self, step: SlotStep, first_row: int) -> Logits:
        assert self._session is not None, "the engine is closed"
        batch = len(step.write_index)
        lengths = step.write_index + np.int32(step.num_new)
        longest = np.array(lengths.max())
        for row, length in enumerate(lengths.tolist(), first_row):
            self._memory.use(row, length)
        if len(self._logits) < step.num_logits:
            self._logits = np.empty((step.num_logits, self._logits.shape[1]), np.float32)
        logits = self._logits[: step.num_logits]
        self._bind("input_ids", step.input_ids)
        self._bind("write_index", step.write_index)
        self._bind("kv_length", lengths)
        self._bind("logit_rows", step.logit_rows)
        self._bind(LENGTH_INPUT, longest)
        self._bind("logits", logits, is_output=True)
        for name, memory in self._memory.layers.items():
            rows = memory[first_row : first_row + batch]
            self._bind(name, rows)
            self._bind(name.replace("past", "present", 1), rows, is_output=True)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # it has a class for every kind, none in common
            raise DeviceError(f"ONNX Runtime failed on a step: {error}") from error
        self._memory.keep_sound(step.write_index, first_row, step.num_new)
        return logits

    def _bind(self, name: str, array: NDArray[np.generic], *, is_output: bool = False) -> None:
        """Lets the session read or write an array where it is."""
        assert self._binding is not None, "the engine is closed"
        bind = self._binding.bind_output if is_output else self._binding.bind_input
        bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
