"""An encoder on ONNX Runtime, straight from the ONNX file, on a processor or a GPU.

It computes any shape without compiling it first. On a processor a run is computed by the thread
that calls it and those of a pool that all lanes share, and each lane has a thread of its own to
call it. On a GPU lanes share one thread and one stream: while the batch of one computes, that of
the other is laid out and enqueued behind it. Each shape is captured once and then replayed.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.base import EncoderSpec, Logits, Shape, TokenRow
from enginehouse_server.engine.staging import Staging
from enginehouse_server.errors import PlanMismatchError

from .elements import to_fp32
from .memory import Shared
from .place import Place, open_place
from .session import BoundSession, open_session

__all__ = ["OnnxRuntimeEncoder"]

_GPU_LANES = 2  # one computes while the other is served
_INT64_BYTES = 8


class OnnxRuntimeEncoder:
    """A session, and lanes that run it.

    Attributes:
        has_graphs: Whether shapes are captured once and replayed.
    """

    backend = "onnxruntime"

    def __init__(self, spec: EncoderSpec, place: Place | None = None) -> None:
        """Loads the model: seconds, and about the size of the weights in memory.

        Args:
            spec: What to load.
            place: Where it computes, closed with the engine; None for the best there is.

        Raises:
            PlanMismatchError: ONNX Runtime cannot read the file, or not compute in its precision.
        """
        self._place = place or open_place(spec.cuda_binding, spec.precision)
        self.runtime_version = self._place.device.runtime_version
        self.device = self._place.device.name
        self.lanes: Sequence[_Lane] = []
        self._threads: list[ThreadPoolExecutor] = []
        try:
            self._load(spec)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the lanes' threads and releases the session."""
        for thread in self._threads:
            thread.shutdown()
        self.lanes = []
        self._place.close()

    def _load(self, spec: EncoderSpec) -> None:
        place = self._place
        place.check_precision(spec.precision, ("int8",))
        is_gpu = place.gpu is not None
        num_lanes = min(spec.num_lanes, _GPU_LANES) if is_gpu else spec.num_lanes
        # Each lane's own thread computes too.
        num_threads = max(1, spec.num_threads - spec.num_lanes + 1)
        session = open_session(spec.model, num_threads, place)
        self.has_graphs = session.has_graphs
        [output, *_] = session.outputs
        width = session.width_of(output)
        if width is None:
            raise PlanMismatchError(
                f"{spec.model} does not say how many labels it has: build the model again"
            )
        self._threads = [_thread() for _ in range(1 if is_gpu else num_lanes)]
        numbers = count()
        self.lanes = [
            _Lane(
                session.another(),
                (output, width),
                spec,
                place,
                self._threads[i % len(self._threads)],
                lambda: next(numbers),
            )
            for i in range(num_lanes)
        ]


class _Lane:
    def __init__(
        self,
        session: BoundSession,
        output: tuple[str, int],
        spec: EncoderSpec,
        place: Place,
        thread: ThreadPoolExecutor,
        next_graph: Callable[[], int],
    ) -> None:
        self._session, self._memory, self._thread = session, place.memory, thread
        (self._output, self._width), self._next_graph = output, next_graph
        self._inputs = {
            name: place.memory.share(_INT64_BYTES * spec.max_batch_tokens) for name in spec.inputs
        }
        buffers = iter(self._inputs.values())
        self._staging = Staging(
            spec.inputs,
            spec.pad_id,
            spec.max_batch_tokens,
            lambda size: cast(NDArray[np.int64], next(buffers).array((size,), np.int64)),
        )
        self._outputs: dict[int, Shared] = {}  # by rows: a captured graph keeps its addresses
        self._graphs: dict[Shape, int] = {}
        self._num_rows = 0
        self._running: Future[tuple[Shared, Shape]] | None = None

    def start(self, rows: Sequence[TokenRow], shape: Shape) -> None:
        self._staging.fill(rows, shape)
        self._num_rows = len(rows)
        self._running = self._thread.submit(self._enqueue, shape)

    def wait(self) -> Logits:
        assert self._running is not None, "no batch computes"
        running, self._running = self._running, None
        shared, shape = running.result()
        shared.wait()
        element = self._session.outputs[self._output]
        logits = shared.array((shape.batch, self._width), element.dtype)[: self._num_rows]
        return to_fp32(logits, element).copy()

    def _enqueue(self, shape: Shape) -> tuple[Shared, Shape]:
        session = self._session
        for name, shared in self._inputs.items():
            shared.upload(_INT64_BYTES * shape.num_tokens)
            session.bind_input(name, shape, shared.address)
        num_bytes = shape.batch * self._width * session.outputs[self._output].dtype.itemsize
        if shape.batch not in self._outputs:
            self._outputs[shape.batch] = self._memory.share(num_bytes)
        shared = self._outputs[shape.batch]
        session.bind_output(self._output, (shape.batch, self._width), shared.address)
        if shape not in self._graphs:
            self._graphs[shape] = self._next_graph()
        session.run("a batch", self._graphs[shape])
        shared.download(num_bytes)
        return shared, shape


def _thread() -> ThreadPoolExecutor:
    thread = ThreadPoolExecutor(1, "onnxruntime-lane")
    # Started here and now: a thread runs as urgently as the one that starts it.
    thread.submit(int).result()
    return thread
