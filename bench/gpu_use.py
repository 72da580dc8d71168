"""How much of a time the GPU computes, as its driver counts."""

import subprocess
from typing import Self

__all__ = ["GpuUse"]

_EVERY_MS = 100


class GpuUse:
    """Samples nvidia-smi while the context is entered.

    Its `utilization.gpu` is the share of the time before a sample in which any kernel ran.

    Attributes:
        share: Mean over the samples, 0 to 1; None if there was none.
    """

    share: float | None = None

    def __enter__(self) -> Self:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        command += ["-i", "0", "-lms", str(_EVERY_MS)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        output = self._process.communicate(timeout=10)[0]
        samples = [int(line) for line in output.split() if line.isdigit()]
        # The first is of before, and a second passes until load shows.
        kept = samples[1_000 // _EVERY_MS :] or samples
        self.share = sum(kept) / len(kept) / 100 if kept else None

    def __str__(self) -> str:
        return "GPU busy: unknown" if self.share is None else f"GPU busy {self.share:.0%}"
