"""What an engine takes of a device's memory, planned before it is taken."""

from dataclasses import dataclass
from pathlib import Path

from enginehouse_server.engine.cuda import DeviceMemory
from enginehouse_server.errors import PlanMismatchError

__all__ = ["MemoryPlan", "check_least", "usable"]

# Contexts, graphs and the allocator's own rounding; of the whole memory.
_RESERVED_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of the device, by use.

    Attributes:
        weights: About, the plan's size; on the device already.
        activations: That runs work in.
        caches: Keys and values.
        staging: Inputs and outputs.
    """

    weights: int
    activations: int
    caches: int
    staging: int

    def check(self, memory: DeviceMemory, file: Path, remedy: str) -> None:
        """Refuses what does not fit beside the weights.

        Args:
            memory: Of the device, with the weights on it.
            file: The plan.
            remedy: What to do about it.

        Raises:
            PlanMismatchError: There is not as much.
        """
        needed = self.activations + self.caches + self.staging
        if needed > usable(memory):
            raise PlanMismatchError(
                f"{file} takes {self}, and beside its weights the device has "
                f"{_mib(usable(memory))} of {_mib(memory.total)} MiB to give: {remedy}"
            )

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "activations": self.activations,
            "caches": self.caches,
            "staging": self.staging,
        }
        listed = ", ".join(f"{_mib(size)} MiB of {name}" for name, size in parts.items() if size)
        return f"{_mib(sum(parts.values()))} MiB of the device ({listed})"


def usable(memory: DeviceMemory) -> int:
    """What may be planned with: the free memory but for a reserve."""
    return max(0, memory.free - int(memory.total * _RESERVED_SHARE))


def check_least(needed: int, memory: DeviceMemory, file: Path) -> None:
    """Refuses a plan before it is read if not even its weights would fit.

    Raises:
        PlanMismatchError: They would not.
    """
    if needed > usable(memory):
        raise PlanMismatchError(
            f"{file} takes at least {_mib(needed)} MiB of the device, which has "
            f"{_mib(usable(memory))} of {_mib(memory.total)} MiB to give: end what else uses it, "
            "or build the model in a narrower precision"
        )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f}"
