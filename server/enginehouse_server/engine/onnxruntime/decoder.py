"""A decoder on ONNX Runtime, over slots that it updates in place, on a processor or a GPU.

A step is a chunk of one sequence, or a token of each of several whose slots lie beside each other.
ONNX Runtime computes any shape without compiling it first, so nothing is padded. On a GPU a step of
single tokens is captured once for each number of sequences, and then replayed.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import DecoderSpec, ReducedLogits, StepItem
from enginehouse_server.engine.rows import SlotRows
from enginehouse_server.engine.slots import SlotStep, lay_out, slot_limits
from enginehouse_server.errors import PlanMismatchError

from .cache import SlotMemory
from .logits import StepLogits
from .lowering import LENGTH_INPUT, lower_decoder
from .place import Place, open_place
from .session import BoundSession, open_session

__all__ = ["OnnxRuntimeDecoder"]

_SHARE_OF_FREE_MEMORY = 0.5  # of a GPU, once the weights are there: the rest is for computing


class _Work(NamedTuple):
    """A step to compute.

    Attributes:
        step: Laid out.
        first_row: Of its rows of the cache.
        graph: Number of its captured graph; None if it has none.
        is_wanted: Of which rows all logits are to be given, `[num_logits]`.
    """

    step: SlotStep
    first_row: int
    graph: int | None
    is_wanted: NDArray[np.bool_]


class OnnxRuntimeDecoder:
    """A session, its slots, and a thread that runs it.

    Attributes:
        has_graphs: Whether steps of single tokens are captured once and replayed.
    """

    backend = "onnxruntime"

    def __init__(
        self, spec: DecoderSpec, place: Place | None = None, *, is_lowered: bool = False
    ) -> None:
        """Reads, lowers and loads the model: seconds, and about the weights' size in memory.

        Args:
            spec: What to load.
            place: Where it computes, closed with the engine; None for the best there is.
            is_lowered: Whether the file's attention is in operators with bodies, as that of a graph
                that was lowered for TensorRT, and is left as it is.

        Raises:
            PlanMismatchError: ONNX Runtime cannot read the file, arithmetic or cache are to be of
                a precision that there is not here, attention is to be paged, or the cache has no
                room for a slot.
            DeviceError: A GPU has not as much memory.
        """
        self._place = place or open_place(spec.cuda_binding, spec.precision)
        self.runtime_version = self._place.device.runtime_version
        self.device = self._place.device.name
        self._thread = ThreadPoolExecutor(1, "onnxruntime-decoder")
        # Started here and now: a thread runs as urgently as the one that starts it.
        self._thread.submit(int).result()
        self._running: Future[None] | None = None
        self._session: BoundSession | None = None
        try:
            self._load(spec, is_lowered=is_lowered)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, items: Sequence[StepItem]) -> None:
        """Begins to compute a step; the items may be changed as soon as this returns."""
        assert self._session is not None, "the engine is closed"
        one_each = all(len(item.tokens) == item.num_logits == 1 for item in items)
        graph = len(items) if one_each and self.has_graphs else None
        if len(items) == 1 and graph is None:
            first_row = self._rows.row_of(items[0].blocks[0])
            step = lay_out(items, self.limits, [0])
        else:  # a captured graph has its rows where they were when it was captured
            first_row = 0
            rows = self._rows.gather([item.blocks[0] for item in items])
            step = lay_out(items, self.limits, rows)
        is_wanted = np.array([not i.is_reduced for i in items for _ in range(i.num_logits)], bool)
        self._running = self._thread.submit(self._run, _Work(step, first_row, graph, is_wanted))

    def wait(self) -> Logits:
        """Waits for the step, and gives its logits `[sum of num_logits, vocab]`.

        They are the engine's own memory: valid until the next `start`, and may be overwritten.

        Raises:
            DeviceError: The runtime failed; what the step was to write is undefined.
        """
        self._finish()
        return self._logits.rows(0, self._logits.num_wanted)

    def wait_reduced(self) -> ReducedLogits:
        """Waits for the step, in the place of `wait`; only where the limits' `num_best` is not 0.

        Raises:
            DeviceError: The runtime failed; what the step was to write is undefined.
        """
        self._finish()
        return self._logits.reduced()

    def copy_block(self, source: int, target: int) -> None:
        """Copies the keys and values of a slot into another; not while a step computes."""
        self._cache.copy(self._rows.row_of(source), self._rows.row_of(target))

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Makes slots as they were before anything was written; not while a step computes."""
        self._cache.clear([self._rows.row_of(block) for block in blocks])

    def close(self) -> None:
        """Ends the thread, and releases the session and the cache."""
        self._thread.shutdown()
        self._session = None
        self._place.close()

    def _load(self, spec: DecoderSpec, *, is_lowered: bool) -> None:
        place = self._place
        place.check_precision(spec.precision, ("int8", "int4"))
        if spec.cache_bytes or place.gpu is None:
            self.limits = slot_limits(spec, place.cache_precisions)
        if spec.attention != "slots":
            raise PlanMismatchError(
                f"ONNX Runtime attends over slots, not {spec.attention}: build the model again"
            )
        lowered = None
        if not is_lowered:
            lowered = lower_decoder(
                spec.model, spec.layers, place.grouped, on_device=not place.memory.is_host
            )
        session = self._session = open_session(
            spec.model,
            spec.num_threads,
            place,
            lowered.graph if lowered else None,
            captures=lowered is not None and lowered.is_grouped,
        )
        self.has_graphs = session.has_graphs
        if not spec.cache_bytes and place.gpu is not None:
            left = int(_SHARE_OF_FREE_MEMORY * place.gpu.memory().free)
            self.limits = slot_limits(replace(spec, cache_bytes=left), place.cache_precisions)
        num_best = lowered.num_best if lowered else 0
        self.limits = replace(self.limits, num_best=num_best)
        self._logits = StepLogits(
            session, place.memory, spec.vocab_size, self.limits.max_sequences, num_best
        )
        self._cache = SlotMemory(spec.layers, self.limits, place.memory, session.inputs)
        self._rows = SlotRows(self.limits.num_blocks, self._cache.swap)
        most = max(spec.max_step_tokens, self.limits.max_sequences)
        self._inputs = {
            name: place.memory.share(session.inputs[name].dtype.itemsize * most)
            for name in ("input_ids", "write_index", "kv_length", "logit_rows")
        }
        self._length = np.zeros((), np.int32)  # read by the host's side of the runtime
        self._capture()

    def _capture(self) -> None:
        """Captures a step of each number of sequences, on slots that hold nothing."""
        if not self.has_graphs:
            return
        slots = range(self.limits.num_blocks)
        for count in range(1, self.limits.max_sequences + 1):
            self.start([StepItem([slot], 0, [0]) for slot in slots[:count]])
            self.wait()
        self.clear_blocks(slots)

    def _finish(self) -> None:
        assert self._running is not None, "no step computes"
        running, self._running = self._running, None
        running.result()

    def _run(self, work: _Work) -> None:
        step, first_row, graph, is_wanted = work
        session = self._session
        assert session is not None, "the engine is closed"
        lengths = step.write_index + np.int32(step.num_new)
        for row, length in enumerate(lengths.tolist(), first_row):
            self._cache.use(row, length)
        self._give("input_ids", step.input_ids)
        self._give("write_index", step.write_index)
        self._give("kv_length", lengths)
        logit_rows = step.logit_rows
        if self.limits.num_best and not step.num_logits:
            # One is always computed, and then of no use: CUDA's kernels do not reduce none.
            logit_rows = np.array([step.input_ids.size - 1])
        self._give("logit_rows", logit_rows)
        # What is captured is captured with it: as long as a slot can get.
        self._length[...] = lengths.max() if graph is None else self.limits.block_size
        if LENGTH_INPUT in session.inputs:
            session.bind_input(LENGTH_INPUT, (), self._length.ctypes.data, on_host=True)
        for name, rows in self._cache.rows(first_row, len(step.write_index)):
            session.bind_input(name, rows.shape, rows.address)
            session.bind_output(name.replace("past", "present", 1), rows.shape, rows.address)
        self._logits.bind(len(logit_rows))
        session.run("a step", graph)
        self._logits.download(is_wanted)
        if self._place.memory.is_host:
            self._cache.keep_sound(step.write_index, first_row, step.num_new)

    def _give(self, name: str, array: NDArray[np.generic]) -> None:
        """Lets the session read an array's numbers."""
        assert self._session is not None, "the engine is closed"
        shared = self._inputs[name]
        shared.array(array.shape, array.dtype)[...] = array
        shared.upload(array.nbytes)
        self._session.bind_input(name, array.shape, shared.address)
