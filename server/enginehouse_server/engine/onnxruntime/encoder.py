"""An encoder on ONNX Runtime's provider for processors, straight from the ONNX file.

It computes any shape without compiling it first. A run is computed by the thread that calls it and
those of a pool that all lanes share; each lane has a thread of its own to call it.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from enginehouse_server.engine.base import EncoderSpec, Logits, Shape, TokenRow
from enginehouse_server.engine.staging import Staging
from enginehouse_server.errors import DeviceError, PlanMismatchError

from .device import describe_device
from .session import open_session

__all__ = ["OnnxRuntimeEncoder"]


class OnnxRuntimeEncoder:
    """A session, and lanes that run it."""

    backend = "onnxruntime"

    def __init__(self, spec: EncoderSpec) -> None:
        """Loads the model: seconds, and about the size of the weights in memory.

        Raises:
            PlanMismatchError: ONNX Runtime cannot read the file, or is to compute in bf16.
        """
        device = describe_device()
        self.runtime_version, self.device = device.runtime_version, device.name
        if spec.precision == "bf16":
            raise PlanMismatchError(
                "ONNX Runtime does not compute in bf16 on a processor; build the model with "
                "PRECISION=fp32 or int8"
            )
        # Each lane's own thread computes too.
        num_threads = max(1, spec.num_threads - spec.num_lanes + 1)
        session = open_session(spec.model, num_threads)
        self.lanes: Sequence[_Lane] = [_Lane(session, spec) for _ in range(spec.num_lanes)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the lanes' threads and releases the session."""
        for lane in self.lanes:
            lane.close()
        self.lanes = []


class _Lane:
    def __init__(self, session: ort.InferenceSession, spec: EncoderSpec) -> None:
        self._session = session
        self._output = session.get_outputs()[0].name
        self._staging = Staging(spec.inputs, spec.pad_id, spec.max_batch_tokens)
        self._thread = ThreadPoolExecutor(1, "onnxruntime-lane")
        # Started here and now: a thread runs as urgently as the one that starts it.
        self._thread.submit(int).result()
        self._num_rows = 0
        self._running: Future[Logits] | None = None

    def start(self, rows: Sequence[TokenRow], shape: Shape) -> None:
        feeds = self._staging.fill(rows, shape)
        self._num_rows = len(rows)
        self._running = self._thread.submit(self._run, feeds)

    def wait(self) -> Logits:
        assert self._running is not None, "no batch computes"
        running, self._running = self._running, None
        return running.result()[: self._num_rows]

    def close(self) -> None:
        self._thread.shutdown()

    def _run(self, feeds: dict[str, NDArray[np.int64]]) -> Logits:
        try:
            [logits] = self._session.run([self._output], feeds)
        except Exception as error:  # it has a class for every kind, none in common
            raise DeviceError(f"ONNX Runtime failed on a batch: {error}") from error
        found: Logits = np.asarray(logits, np.float32)
        return found
