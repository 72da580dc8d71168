"""An encoder on OpenVINO's CPU plugin, straight from the ONNX file.

The plugin compiles its kernels anew for every shape it meets and keeps `num_shapes` of them, so
callers pad to a fixed set of shapes and warm all of them up.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import openvino as ov

from enginehouse_server.engine.base import EncoderSpec, Logits, Shape, TokenRow
from enginehouse_server.engine.staging import Staging
from enginehouse_server.errors import DeviceError, PlanMismatchError

__all__ = ["OpenVinoEncoder"]

_PRECISION_HINT = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoEncoder:
    """A compiled model with one infer request a lane."""

    backend = "openvino"

    def __init__(self, spec: EncoderSpec) -> None:
        """Reads and compiles the model: seconds, and about the size of the weights in memory.

        Raises:
            PlanMismatchError: OpenVINO cannot read or compile the file, or the processor does not
                compute in the precision asked for.
        """
        core = ov.Core()
        self.runtime_version = ov.__version__.split("-", maxsplit=1)[0]
        self.device = str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if spec.precision == "bf16" and "BF16" not in capabilities:
            raise PlanMismatchError(
                f"this processor ({self.device}) does not compute in bf16; "
                "build the model with PRECISION=fp32 or int8"
            )
        settings = {
            "INFERENCE_PRECISION_HINT": _PRECISION_HINT[spec.precision],
            "INFERENCE_NUM_THREADS": spec.num_threads,
            "NUM_STREAMS": spec.num_lanes,
            "CPU_RUNTIME_CACHE_CAPACITY": _RUNTIME_CACHE_ENTRIES_PER_SHAPE * spec.num_shapes,
        }
        try:
            compiled = core.compile_model(str(spec.model), "CPU", settings)
        except RuntimeError as error:
            raise PlanMismatchError(f"OpenVINO cannot compile {spec.model}: {error}") from error
        self.lanes: Sequence[_Lane] = [_Lane(compiled, spec) for _ in range(spec.num_lanes)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the infer requests and with them the compiled model."""
        self.lanes = []


# An entry is one primitive for one shape; a shape needs an entry for every distinct layer.
_RUNTIME_CACHE_ENTRIES_PER_SHAPE = 128


class _Lane:
    def __init__(self, compiled: ov.CompiledModel, spec: EncoderSpec) -> None:
        self._request = compiled.create_infer_request()
        self._staging = Staging(spec.inputs, spec.pad_id, spec.max_batch_tokens)
        self._num_rows = 0

    def start(self, rows: Sequence[TokenRow], shape: Shape) -> None:
        for name, array in self._staging.fill(rows, shape).items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        self._num_rows = len(rows)
        self._request.start_async()

    def wait(self) -> Logits:
        try:
            self._request.wait()
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO failed on a batch: {error}") from error
        # The runtime reuses its output buffer: hand out a copy.
        logits: Logits = np.array(
            self._request.get_output_tensor(0).data[: self._num_rows], np.float32
        )
        return logits
