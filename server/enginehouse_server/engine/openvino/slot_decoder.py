"""A decoder on OpenVINO's CPU plugin over slots: for attention that its paged operator cannot say.

A step is a chunk of one sequence, or a token of each of several. Each is padded to one of a few
shapes, as the plugin compiles kernels anew for every shape that it meets.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import openvino as ov

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import DecoderSpec, StepItem
from enginehouse_server.engine.slots import SlotStep, coarse, lay_out, slot_limits
from enginehouse_server.errors import DeviceError, PlanMismatchError

from .device import describe_device
from .lower_slots import lower_slots
from .slot_attention import PAGE
from .slot_cache import SlotCache

__all__ = ["OpenVinoSlotDecoder"]


class OpenVinoSlotDecoder:
    """A compiled model, its slots, and one infer request."""

    backend = "openvino"

    def __init__(self, spec: DecoderSpec) -> None:
        """Reads, lowers and compiles the model: seconds, and about the weights' size in memory.

        Raises:
            PlanMismatchError: OpenVINO cannot read, lower or compile the file, arithmetic or cache
                are to be of another precision than fp32, or the cache has no room for a slot.
        """
        self.limits = slot_limits(spec)
        device = describe_device()
        self.runtime_version, self.device = device.runtime_version, device.name
        if spec.precision == "bf16":
            # The plugin would convert the whole cache, and not what is read of it, at every step.
            raise PlanMismatchError(
                "attention over slots is computed in fp32, not in bf16: build the model with "
                "PRECISION=fp32, int8 or int4"
            )
        core = ov.Core()
        model = lower_slots(core, spec.model, spec.layers)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": spec.num_threads,
            "NUM_STREAMS": 1,
        }
        try:
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise PlanMismatchError(f"OpenVINO cannot compile {spec.model}: {error}") from error
        self._cache = SlotCache(spec.layers, self.limits)
        self._request: ov.InferRequest | None = compiled.create_infer_request()
        self._new = {n: compiled.output(n.replace("past", "new", 1)) for n in self._cache.tensors}
        self._logits = compiled.output("logits")
        for name, tensor in self._cache.tensors.items():
            self._request.set_tensor(name, tensor)
        self._step: SlotStep | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, items: Sequence[StepItem]) -> None:
        """Begins to compute a step; the items may be changed as soon as this returns."""
        assert self._request is not None, "the engine is closed"
        step = lay_out(items, self.limits)
        batch, length = step.input_ids.shape
        num_pages = coarse(-(-step.num_kept // PAGE))
        pages = self._cache.pages(step.slots, batch, num_pages * PAGE)
        begins = np.arange(batch, dtype=np.int32) * (num_pages * PAGE) + step.write_index
        self._inputs = {
            "input_ids": step.input_ids,
            "write_index": step.write_index,
            "logit_rows": step.logit_rows,
            "pages": pages,
            "written": (begins[:, None] + np.arange(length, dtype=np.int32)).reshape(-1),
        }
        for name, array in self._inputs.items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        self._step = step
        self._request.start_async()

    def wait(self) -> Logits:
        """Waits for the step, and gives its logits `[sum of num_logits, vocab]`.

        They are the runtime's own memory: valid until the next `start`, and may be overwritten.

        Raises:
            DeviceError: The runtime failed; what the step was to write is undefined.
        """
        assert self._request is not None, "the engine is closed"
        assert self._step is not None, "no step computes"
        step, self._step = self._step, None
        try:
            self._request.wait()
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO failed on a step: {error}") from error
        new = {name: self._request.get_tensor(port).data for name, port in self._new.items()}
        self._cache.write(step.slots, step.write_index, step.num_new, new)
        logits: Logits = self._request.get_tensor(self._logits).data[: step.num_logits]
        return logits

    def copy_block(self, source: int, target: int) -> None:
        """Copies the keys and values of a slot into another; not while a step computes."""
        self._cache.copy(source, target)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Makes slots as they were before anything was written; not while a step computes."""
        self._cache.clear(blocks)

    def close(self) -> None:
        """Releases the infer request, with it the compiled model, and the cache."""
        self._request = None
        self._cache.release()
