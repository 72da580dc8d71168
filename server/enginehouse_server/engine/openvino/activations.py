"""Reads what flows inside a graph: for calibration, not for serving."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from enginehouse_server.engine.base import Shape, TokenRow
from enginehouse_server.engine.staging import Staging

__all__ = ["ActivationReader"]


class ActivationReader:
    """An fp32 model whose inner tensors are outputs."""

    def __init__(
        self, model: Path, tensors: Sequence[str], staging: Staging, num_threads: int
    ) -> None:
        """Compiles the model.

        Raises:
            RuntimeError: OpenVINO cannot compile it, or it has no tensor of such a name.
        """
        core = ov.Core()
        graph = core.read_model(str(model))
        graph.add_outputs(list(tensors))
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": num_threads}
        compiled = core.compile_model(graph, "CPU", settings)
        self._request = compiled.create_infer_request()
        self._outputs = {name: compiled.output(name) for name in tensors}
        self._staging = staging

    def read(self, rows: Sequence[TokenRow], shape: Shape) -> dict[str, NDArray[np.float32]]:
        """The tensors for a batch, by name; valid until the next call."""
        for name, array in self._staging.fill(rows, shape).items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        self._request.infer()
        return {name: self._request.get_tensor(o).data for name, o in self._outputs.items()}
