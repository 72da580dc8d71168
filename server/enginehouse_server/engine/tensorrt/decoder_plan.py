"""What a plan that decodes takes and holds: its inputs, its caches, and how many slots fit."""

import logging
import math

from enginehouse_server.engine.cuda import DeviceMemory
from enginehouse_server.engine.decoder import DecoderLimits, DecoderSpec
from enginehouse_server.engine.reduction import BEST_LOGITS, BEST_TOKENS, REDUCED, WEIGHT_SUMS
from enginehouse_server.errors import PlanMismatchError

from .buffers import ALIGNMENT, aligned
from .cache import DeviceSlots
from .logits import num_staged_bytes
from .memory import MemoryPlan, usable
from .runtime import LoadedPlan

__all__ = ["STEP_INPUTS", "DecoderPlan"]

_log = logging.getLogger(__name__)
STEP_INPUTS = ("input_ids", "write_index", "kv_length", "logit_rows")
_SHARE_OF_FREE_MEMORY = 0.5
_ID_BYTES = 8
_MOST_SCORED = 64  # logits of a prompt's tokens that are planned for; more are allocated when asked
_REMEDY = (
    "lower --max-running or --cache-memory, end what else uses the device, or build the model with "
    "a smaller --max-tokens"
)


class DecoderPlan:
    """A plan's tensors, checked against the model that it is said to be of.

    Attributes:
        plan: Itself.
        prefill: Its profile for a chunk of one sequence.
        decode: Its profile for a token of each of several.
        row_bytes: Of a slot, by name of the cached input.
        cache_shapes: Of a slot without its row, by name of the cached input.
        activation_bytes: That either profile works in.
        num_best: Logits to which it reduces each row; 0 of plans from before there was that.
    """

    def __init__(self, plan: LoadedPlan, spec: DecoderSpec) -> None:
        """Checks it.

        Raises:
            PlanMismatchError: It is of another model, or does not update its caches in place.
        """
        self.plan, self._spec = plan, spec
        [self.prefill], [self.decode] = plan.profiles_of("prefill"), plan.profiles_of("decode")
        expected = {
            f"past_{kind}.{i}": (layer.num_kv_heads, width)
            for i, layer in enumerate(spec.layers)
            for kind, width in (("key", layer.key_dim), ("value", layer.value_dim))
        }
        tensors = plan.tensors
        inputs = {name for name, t in tensors.items() if t.is_input}
        if inputs != {*STEP_INPUTS, *expected}:
            raise self._mismatch(f"has the inputs {', '.join(sorted(inputs))}")
        for name, (heads, width) in expected.items():
            shape = tensors[name].shape
            if len(shape) != 4 or (shape[1], shape[3]) != (heads, width) or shape[2] <= 0:
                raise self._mismatch(f"caches {name} as {list(shape)}")
            if tensors.get(present := present_of(name)) is None:
                raise self._mismatch(f"does not give {present}")
            if tensors[present].alias_of != name:
                raise self._mismatch(f"gives {present} in a memory of its own, not in {name}'s")
        logits = tensors.get("logits")
        if logits is None or (logits.dtype, logits.shape[-1]) != ("FLOAT", spec.vocab_size):
            raise self._mismatch(f"gives logits as {logits and (logits.dtype, *logits.shape)}")
        self.num_best = self._reduction()
        self.cache_shapes = {name: tensors[name].shape[1:] for name in expected}
        self.row_bytes = {
            name: math.prod(shape) * tensors[name].item_bytes
            for name, shape in self.cache_shapes.items()
        }
        if any(size % ALIGNMENT for size in self.row_bytes.values()):
            raise self._mismatch(f"has slots that are no multiple of {ALIGNMENT} bytes")
        self.activation_bytes = max(1, plan.activation_bytes([self.prefill, self.decode]))

    @property
    def max_step_tokens(self) -> int:
        """Longest chunk."""
        most = self.plan.range_of("input_ids", self.prefill).most[1]
        return min(self._spec.max_step_tokens, most)

    @property
    def max_sequences(self) -> int:
        """Most sequences of a step, were there slots for all of them."""
        return min(self._spec.max_sequences, self.plan.range_of("input_ids", self.decode).most[0])

    @property
    def num_scored(self) -> int:
        """Rows of logits of a chunk that are allocated from the beginning."""
        return min(_MOST_SCORED, self.max_step_tokens)

    def limits(self, memory: DeviceMemory) -> DecoderLimits:
        """As many slots as sequences, or as have room.

        Args:
            memory: Of the device, with the weights on it.

        Raises:
            PlanMismatchError: There is no room for any.
        """
        row = sum(self.row_bytes.values())
        fixed = self.activation_bytes + self._staging_bytes
        left = usable(memory) - fixed
        most = self._spec.cache_bytes or int(_SHARE_OF_FREE_MEMORY * left)
        num_slots = self.max_sequences
        while num_slots > 1 and row * DeviceSlots.rows_with_spare(num_slots) > min(most, left):
            num_slots -= 1
        found = self.memory(num_slots)
        if self._spec.cache_bytes and row > most:
            raise PlanMismatchError(
                f"{self.plan.file} takes {row} bytes of cache for one sequence, and {most} are "
                "allowed: raise --cache-memory, or build the model with a smaller --max-tokens"
            )
        found.check(memory, self.plan.file, _REMEDY)
        capacity = self.cache_shapes["past_key.0"][1]
        _log.info("%s takes %s, with %d slots", self.plan.file.name, found, num_slots)
        return DecoderLimits(
            block_size=capacity,
            num_blocks=num_slots,
            max_tokens=min(self._spec.max_tokens, capacity),
            max_step_tokens=min(self.max_step_tokens, capacity),
            max_sequences=num_slots,
            mixes=False,
            shares_blocks=False,
            num_best=self.num_best,
        )

    def memory(self, num_slots: int) -> MemoryPlan:
        """What it all takes with so many slots."""
        rows = DeviceSlots.rows_with_spare(num_slots)
        return MemoryPlan(
            self.plan.weights_bytes,
            self.activation_bytes,
            rows * sum(self.row_bytes.values()),
            self._staging_bytes,
        )

    @property
    def _staging_bytes(self) -> int:
        most = max(self.max_step_tokens, self.max_sequences)
        inputs = len(STEP_INPUTS) * aligned(_ID_BYTES * most)
        return inputs + sum(
            num_staged_bytes(num_rows, self._spec.vocab_size, self.num_best)
            for num_rows in (self.num_scored, self.max_sequences)
        )

    def _reduction(self) -> int:
        found = {name: t for name, t in self.plan.tensors.items() if name in REDUCED}
        if not found:
            return 0
        width = found[BEST_LOGITS].shape[-1] if BEST_LOGITS in found else 0
        expected = {
            BEST_LOGITS: ("FLOAT", (-1, width)),
            BEST_TOKENS: ("INT32", (-1, width)),
            WEIGHT_SUMS: ("FLOAT", (-1,)),
        }
        given = {name: (t.dtype, t.shape) for name, t in found.items()}
        if given != expected or not 0 < width <= self._spec.vocab_size:
            raise self._mismatch(f"reduces logits to {given}")
        return width

    def _mismatch(self, what: str) -> PlanMismatchError:
        return PlanMismatchError(
            f"{self.plan.file} {what}, which is not what its manifest says: build the model again"
        )


def present_of(past: str) -> str:
    """The output that a cached input is updated as."""
    return past.replace("past", "present", 1)
