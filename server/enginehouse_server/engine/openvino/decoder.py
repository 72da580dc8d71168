"""A decoder on OpenVINO's CPU plugin, by paged attention: any mix of sequences in a step."""

from collections.abc import Sequence
from typing import Self

import openvino as ov

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import DecoderLimits, DecoderSpec, StepItem
from enginehouse_server.errors import DeviceError, PlanMismatchError

from .cache import BlockCache
from .lower_decoder import lower_decoder
from .paged_attention import BLOCK_SIZE
from .step import StepBuffers

__all__ = ["OpenVinoDecoder"]

_PRECISION_HINT = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "int4": "f32"}
_CACHE_PRECISION = {"fp32": "f32", "bf16": "bf16", "u8": "u8"}


class OpenVinoDecoder:
    """A compiled model, its cache, and one infer request."""

    backend = "openvino"

    def __init__(self, spec: DecoderSpec) -> None:
        """Reads, lowers and compiles the model: seconds, and about the weights' size in memory.

        The cache is as large as `spec.cache_bytes` allows, and no larger than the longest sequences
        that may run at once could fill.

        Raises:
            PlanMismatchError: OpenVINO cannot read, lower or compile the file, the processor does
                not compute in the precision asked for, or the cache has no room for a block.
        """
        core = ov.Core()
        self.runtime_version = ov.__version__.split("-", maxsplit=1)[0]
        self.device = str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
        _check_precision(core, spec, self.device)
        compiled = _compile(core, spec)
        most_blocks = spec.max_sequences * -(-spec.max_tokens // BLOCK_SIZE)
        self._cache = BlockCache(compiled.inputs, spec.cache_bytes, most_blocks)
        self.limits = DecoderLimits(
            block_size=BLOCK_SIZE,
            num_blocks=self._cache.num_blocks,
            max_tokens=min(spec.max_tokens, self._cache.num_blocks * BLOCK_SIZE),
            max_step_tokens=spec.max_step_tokens,
            max_sequences=spec.max_sequences,
            mixes=True,
            shares_blocks=True,
        )
        self._buffers = StepBuffers(spec.max_sequences, spec.max_step_tokens, spec.max_tokens)
        self._request: ov.InferRequest | None = compiled.create_infer_request()
        for name, tensor in {**self._buffers.tensors, **self._cache.tensors}.items():
            self._request.set_tensor(name, tensor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, items: Sequence[StepItem]) -> None:
        """Begins to compute a step; the items may be changed as soon as this returns."""
        assert self._request is not None, "the engine is closed"
        self._buffers.fill(items)
        self._request.start_async()

    def wait(self) -> Logits:
        """Waits for the step, and gives its logits `[sum of num_logits, vocab]`.

        They are the runtime's own memory: valid until the next `start`, and may be overwritten.

        Raises:
            DeviceError: The runtime failed; what the step was to write is undefined.
        """
        assert self._request is not None, "the engine is closed"
        try:
            self._request.wait()
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO failed on a step: {error}") from error
        logits: Logits = self._request.get_output_tensor(0).data
        return logits

    def copy_block(self, source: int, target: int) -> None:
        """Copies the keys and values of a block into another; not while a step computes."""
        self._cache.copy(source, target)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Makes blocks as they were before anything was written; not while a step computes."""
        self._cache.clear(blocks)

    def close(self) -> None:
        """Releases the infer request, with it the compiled model, and the cache."""
        self._request = None
        self._cache.release()


def _check_precision(core: ov.Core, spec: DecoderSpec, device: str) -> None:
    computes = "bf16" if spec.precision == "bf16" else "fp32"
    if spec.cache_precision not in (computes, "u8"):
        raise PlanMismatchError(
            f"OpenVINO computes {spec.precision} in {computes} and caches it in that or in u8, not "
            f"in {spec.cache_precision}: choose another CACHE_PRECISION"
        )
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if computes == "bf16" and "BF16" not in capabilities:
        raise PlanMismatchError(
            f"this processor ({device}) does not compute in bf16; "
            "build the model with PRECISION=fp32, int8 or int4"
        )


def _compile(core: ov.Core, spec: DecoderSpec) -> ov.CompiledModel:
    # A cache in u8 is read wrongly for all but one sequence of a step where widths differ (2026.4).
    equal = spec.cache_precision == "u8"
    model = lower_decoder(core, spec.model, spec.layers, equal_widths=equal)
    settings = {
        "INFERENCE_PRECISION_HINT": _PRECISION_HINT[spec.precision],
        "KV_CACHE_PRECISION": _CACHE_PRECISION[spec.cache_precision],
        "INFERENCE_NUM_THREADS": spec.num_threads,
        "NUM_STREAMS": 1,
    }
    try:
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise PlanMismatchError(f"OpenVINO cannot compile {spec.model}: {error}") from error
