"""An encoder as a TensorRT plan: lanes with a stream each, on which copies and runs are enqueued.

A lane enqueues a batch's copies and its run at once and goes on; it waits only when it is asked for
the results. While one lane's batch is computed, another's is filled in and copied: each has its own
staging, activations, stream and graphs.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.base import EncoderSpec, Logits, Shape, TokenRow
from enginehouse_server.engine.cuda import CudaDevice
from enginehouse_server.engine.staging import Staging
from enginehouse_server.errors import DeviceError, PlanMismatchError

from .buffers import Staged, aligned
from .context import Binding
from .failure import release_with
from .flavour import Flavour, load_flavour
from .graphs import Runner, Work
from .memory import MemoryPlan
from .runtime import LoadedPlan

__all__ = ["TensorRtEncoder"]

_ID_BYTES, _LOGIT_BYTES = 8, 4
_REMEDY = "lower --lanes or --max-batch-tokens, or end what else uses the device"


class TensorRtEncoder:
    """A plan with one stream a lane. It takes the device over, and closes it."""

    def __init__(self, spec: EncoderSpec, flavour: Flavour, device: CudaDevice) -> None:
        """Reads the plan: seconds, and about its size in the device's memory.

        Raises:
            PlanMismatchError: TensorRT is not installed, the plan is of another version, GPU or
                model, or does not fit into the device's memory.
            DeviceError: The device failed.
        """
        self.backend = flavour
        with ExitStack() as stack:
            release_with(stack, device.close)
            trt = load_flavour(flavour)
            self.runtime_version, self.device = str(trt.__version__), device.info.name
            plan = LoadedPlan(spec.model, spec.plan, flavour, trt, device, spec.kernels)
            release_with(stack, plan.close)
            self._traits = _Traits(plan, spec)
            self.memory = self._traits.memory(spec.num_lanes)
            self.memory.check(device.memory(), plan.file, _REMEDY)
            self.lanes: Sequence[_Lane] = []
            for _ in range(spec.num_lanes):
                lane = _Lane(self._traits, spec, device, stack)
                self.lanes = [*self.lanes, lane]
            self._closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keep_kernels(self) -> None:
        """Keeps for the next load what was compiled here; no lane may be computing."""
        self._traits.plan.keep_kernels()

    def close(self) -> None:
        """Releases the lanes, the plan and the device. Twice is once."""
        self.lanes = []
        self._closing.close()


class _Traits:
    """What a plan that encodes takes, checked."""

    def __init__(self, plan: LoadedPlan, spec: EncoderSpec) -> None:
        inputs = {t.name for t in plan.tensors.values() if t.is_input}
        outputs = [t for t in plan.tensors.values() if not t.is_input]
        kinds = {t.dtype for t in plan.tensors.values() if t.is_input}
        if inputs != set(spec.inputs) or kinds != {"INT64"} or len(outputs) != 1:
            raise PlanMismatchError(
                f"{plan.file} takes {', '.join(sorted(inputs))} and gives {len(outputs)} outputs; "
                f"its manifest says {', '.join(spec.inputs)}, all of INT64: build the model again"
            )
        [self.output] = outputs
        if self.output.dtype != "FLOAT" or len(self.output.shape) != 2:
            raise PlanMismatchError(
                f"{plan.file} gives {self.output.name} as {self.output.dtype} of shape "
                f"{list(self.output.shape)}; FLOAT of rows and labels is served: build the model "
                "again"
            )
        self.plan, self.inputs = plan, spec.inputs
        self.num_labels = self.output.shape[1]
        self.profiles = plan.profiles_of("encode")
        self.max_tokens = spec.max_batch_tokens
        ranges = [plan.range_of(spec.inputs[0], i) for i in self.profiles]
        self.max_rows = min(self.max_tokens, max(r.most[0] for r in ranges))
        self.activation_bytes = max(1, plan.activation_bytes(self.profiles))

    @property
    def input_bytes(self) -> int:
        """Of one input's staging."""
        return aligned(_ID_BYTES * self.max_tokens)

    @property
    def output_bytes(self) -> int:
        """Of the staging of the logits."""
        return aligned(_LOGIT_BYTES * self.max_rows * self.num_labels)

    def memory(self, num_lanes: int) -> MemoryPlan:
        """What it all takes."""
        staging = len(self.inputs) * self.input_bytes + self.output_bytes
        return MemoryPlan(
            self.plan.weights_bytes, num_lanes * self.activation_bytes, 0, num_lanes * staging
        )

    def profile_for(self, shape: Shape) -> int:
        """The first profile that takes a shape.

        Raises:
            DeviceError: None does.
        """
        for profile in self.profiles:
            if all(self.plan.range_of(name, profile).holds(shape) for name in self.inputs):
                return profile
        ranges = [self.plan.range_of(self.inputs[0], i) for i in self.profiles]
        raise DeviceError(
            f"{self.plan.file} takes no batch of {shape.batch} rows of {shape.length} tokens, but "
            + ", ".join(f"{list(r.least)} to {list(r.most)}" for r in ranges)
        )


class _Lane:
    def __init__(
        self, traits: _Traits, spec: EncoderSpec, device: CudaDevice, stack: ExitStack
    ) -> None:
        """Allocates; `stack` releases it all."""
        self._traits = traits
        activations = device.allocate(traits.activation_bytes)
        release_with(stack, activations.free)
        self._inputs = {name: Staged(device, traits.input_bytes) for name in spec.inputs}
        self._output = Staged(device, traits.output_bytes)
        for staged in (*self._inputs.values(), self._output):
            release_with(stack, staged.free)
        arrays = iter(self._inputs.values())
        self._staging = Staging(
            spec.inputs,
            spec.pad_id,
            spec.max_batch_tokens,
            lambda count: cast(NDArray[np.int64], next(arrays).array(0, count, np.int64)),
        )
        self._logits = self._output.array(0, traits.max_rows * traits.num_labels, np.float32)
        self._runner = Runner(traits.plan, device, activations, max_graphs=spec.num_shapes)
        release_with(stack, self._runner.close)
        self._done = device.event()
        self._works: dict[Shape, Work] = {}
        self._shape, self._num_rows = Shape(0, 0), 0

    def start(self, rows: Sequence[TokenRow], shape: Shape) -> None:
        self._staging.fill(rows, shape)
        self._shape, self._num_rows = shape, len(rows)
        if shape not in self._works:
            self._works[shape] = self._work(shape)
        try:
            self._runner.run(self._works[shape], recurs=True)
        except DeviceError:
            with suppress(DeviceError):  # what was enqueued must not read the next batch
                self._runner.stream.synchronize()
            raise
        self._runner.stream.record(self._done)

    def wait(self) -> Logits:
        self._done.synchronize()
        labels = self._traits.num_labels
        logits = self._logits[: self._num_rows * labels].reshape(self._num_rows, labels)
        # The next batch of the lane is copied there: hand out a copy.
        return cast(Logits, logits.copy())

    def _work(self, shape: Shape) -> Work:
        traits = self._traits
        addresses = [(name, staged.address()) for name, staged in self._inputs.items()]
        num_bytes = _LOGIT_BYTES * shape.batch * traits.num_labels
        return Work(
            Binding(
                profile=traits.profile_for(shape),
                shapes=tuple((name, tuple(shape)) for name in traits.inputs),
                addresses=(*addresses, (traits.output.name, self._output.address())),
            ),
            tuple(s.copy(_ID_BYTES * shape.num_tokens) for s in self._inputs.values()),
            (self._output.copy(num_bytes),),
        )
