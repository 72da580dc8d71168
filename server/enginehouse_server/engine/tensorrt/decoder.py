"""A decoder as a TensorRT plan, over slots of the device's memory that it updates in place.

A step is a chunk of one sequence, at the address of its slot, or a token of each of several whose
slots lie beside each other. All of a step is enqueued at once: a copy of what it is about, the run,
copies of what is wanted of its logits. Steps of as many sequences as before are one CUDA graph.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.cuda import CudaDevice
from enginehouse_server.engine.decoder import DecoderSpec, ReducedLogits, StepItem
from enginehouse_server.engine.rows import SlotRows
from enginehouse_server.engine.slots import SlotStep, lay_out
from enginehouse_server.errors import DeviceError, PlanMismatchError

from .buffers import StagedArrays
from .cache import DeviceSlots
from .context import Binding
from .decoder_plan import STEP_INPUTS, DecoderPlan, present_of
from .failure import release_with
from .flavour import Flavour, load_flavour
from .graphs import Runner, Work
from .logits import StagedLogits
from .runtime import LoadedPlan

__all__ = ["TensorRtDecoder"]

_DTYPES: dict[str, DTypeLike] = {"INT64": np.int64, "INT32": np.int32}


class TensorRtDecoder:
    """A plan, its slots, and the stream that runs it. It takes the device over, and closes it."""

    def __init__(self, spec: DecoderSpec, flavour: Flavour, device: CudaDevice) -> None:
        """Reads the plan: seconds, and about its size in the device's memory.

        Raises:
            PlanMismatchError: TensorRT is not installed, the plan is of another version, GPU or
                model, or the device's memory has no room for it and one slot.
            DeviceError: The device failed.
        """
        self.backend = flavour
        with ExitStack() as stack:
            release_with(stack, device.close)
            trt = load_flavour(flavour)
            self.runtime_version, self.device = str(trt.__version__), device.info.name
            if spec.attention != "slots":
                raise PlanMismatchError(
                    f"{flavour} attends over slots, not {spec.attention}: build the model again"
                )
            loaded = LoadedPlan(spec.model, spec.plan, flavour, trt, device, spec.kernels)
            release_with(stack, loaded.close)
            plan = self._plan = DecoderPlan(loaded, spec)
            self.limits = plan.limits(device.memory())
            activations = device.allocate(plan.activation_bytes)
            release_with(stack, activations.free)
            self._inputs = StagedArrays(device, self._input_sizes())
            release_with(stack, self._inputs.free)
            sizes = spec.vocab_size, plan.num_best
            self._of_decodes = StagedLogits(device, self.limits.max_sequences, *sizes)
            release_with(stack, self._of_decodes.free)
            self._of_prompts = StagedLogits(device, plan.num_scored, *sizes)
            release_with(stack, self._of_prompts.free)
            self._runner = Runner(loaded, device, activations, self.limits.max_sequences)
            self._slots = DeviceSlots(
                device, self._runner.stream, plan.row_bytes, self.limits.num_blocks
            )
            release_with(stack, self._slots.free)
            release_with(stack, self._runner.close)
            self._rows = SlotRows(self.limits.num_blocks, self._slots.swap)
            self._done = device.event()
            self._decodes: dict[tuple[int, int], Work] = {}
            self._computed: StagedLogits | None = None  # by the step that was started
            self._closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_graphs(self) -> int:
        """CUDA graphs that are kept: of steps of that many sequences."""
        return self._runner.num_graphs

    def start(self, items: Sequence[StepItem]) -> None:
        """Begins to compute a step; the items may be changed as soon as this returns."""
        assert self._computed is None, "a step computes already"
        try:
            if all(len(item.tokens) == 1 for item in items):
                self._start_decodes(items)
            else:
                self._start_chunk(items)
            self._runner.stream.record(self._done)
        except DeviceError:
            self._computed = None
            with suppress(DeviceError):  # what was enqueued must not read the next step
                self._runner.stream.synchronize()
            raise

    def wait(self) -> Logits:
        """Waits for the step, and gives its logits `[sum of num_logits, vocab]`.

        They are the engine's own memory: valid until the next `start`, and may be overwritten.

        Raises:
            DeviceError: The runtime failed; what the step was to write is undefined.
        """
        logits = self._finished()
        return logits.rows(0, logits.num_computed)

    def wait_reduced(self) -> ReducedLogits:
        """Waits for the step, in the place of `wait`; only where the limits' `num_best` is not 0.

        Raises:
            DeviceError: The runtime failed; what the step was to write is undefined.
        """
        return self._finished().reduced()

    def copy_block(self, source: int, target: int) -> None:
        """Copies the keys and values of a slot into another; not while a step computes."""
        self._slots.copy(self._rows.row_of(source), self._rows.row_of(target))

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Makes slots as they were before anything was written; not while a step computes."""
        self._slots.clear([self._rows.row_of(block) for block in blocks])

    def keep_kernels(self) -> None:
        """Keeps for the next load what was compiled here; not while a step computes."""
        self._plan.plan.keep_kernels()

    def close(self) -> None:
        """Releases the plan, the slots and the device. Twice is once."""
        self._closing.close()

    def _start_decodes(self, items: Sequence[StepItem]) -> None:
        rows = self._rows.gather([item.blocks[0] for item in items])
        step = self._lay_out(items, rows, rows)
        key = (len(items), max(1, step.num_logits))
        if key not in self._decodes:
            shape = (len(items), 1)
            self._decodes[key] = self._work(self._plan.decode, 0, shape, key[1], self._of_decodes)
        self._run(self._decodes[key], step, recurs=True)
        self._expect(items, self._of_decodes)

    def _start_chunk(self, items: Sequence[StepItem]) -> None:
        row = self._rows.row_of(items[0].blocks[0])
        step = self._lay_out(items, [0], [row])
        num_logits = max(1, step.num_logits)
        self._of_prompts.reserve(num_logits)
        work = self._work(
            self._plan.prefill, row, step.input_ids.shape, num_logits, self._of_prompts
        )
        if not step.num_logits:  # one is always computed, and then of no use
            work = work._replace(outputs=())
        self._run(work, step, recurs=False)
        self._expect(items, self._of_prompts)

    def _lay_out(
        self, items: Sequence[StepItem], rows: Sequence[int], places: Sequence[int]
    ) -> SlotStep:
        """Lays out a step whose items are in rows of it, and in places of the cache."""
        step = lay_out(items, self.limits, rows)
        for item, place in zip(items, places, strict=True):
            self._slots.use(place, begins=not item.num_cached)
        return step

    def _finished(self) -> StagedLogits:
        assert self._computed is not None, "no step computes"
        computed, self._computed = self._computed, None
        self._done.synchronize()
        return computed

    def _expect(self, items: Sequence[StepItem], logits: StagedLogits) -> None:
        is_wanted = np.array([not i.is_reduced for i in items for _ in range(i.num_logits)], bool)
        logits.expect(is_wanted, self._runner.stream)
        self._computed = logits

    def _run(self, work: Work, step: SlotStep, *, recurs: bool) -> None:
        arrays = self._inputs.arrays
        values: dict[str, NDArray[np.integer]] = {
            "input_ids": step.input_ids.reshape(-1),
            "write_index": step.write_index,
            "kv_length": step.write_index + np.int32(step.num_new),
            "logit_rows": step.logit_rows,
        }
        if not step.num_logits:
            values["logit_rows"] = np.array([step.input_ids.size - 1])
        for name, array in values.items():
            arrays[name][: len(array)] = array
        self._runner.run(work, recurs=recurs)

    def _work(
        self,
        profile: int,
        first_row: int,
        shape: tuple[int, ...],
        num_logits: int,
        logits: StagedLogits,
    ) -> Work:
        batch = shape[0]
        places = self._slots.addresses(first_row)
        sizes = {
            "input_ids": (batch, shape[1]),
            "write_index": (batch,),
            "kv_length": (batch,),
            "logit_rows": (num_logits,),
        }
        caches = {name: (batch, *rest) for name, rest in self._plan.cache_shapes.items()}
        addresses = {
            **self._inputs.addresses,
            **places,
            **{present_of(name): address for name, address in places.items()},
            **logits.addresses(num_logits),
        }
        return Work(
            Binding(profile, (*sizes.items(), *caches.items()), tuple(addresses.items())),
            (self._inputs.copy,),
            (logits.copy(num_logits),),
        )

    def _input_sizes(self) -> dict[str, tuple[int, DTypeLike]]:
        most = max(self.limits.max_step_tokens, self.limits.max_sequences)
        counts = dict.fromkeys(STEP_INPUTS, most)
        tensors = self._plan.plan.tensors
        wrong = [name for name in STEP_INPUTS if tensors[name].dtype not in _DTYPES]
        if wrong:
            raise PlanMismatchError(
                f"{self._plan.plan.file} takes {wrong[0]} as {tensors[wrong[0]].dtype}, not as "
                "integers: build the model again"
            )
        return {name: (count, _DTYPES[tensors[name].dtype]) for name, count in counts.items()}
