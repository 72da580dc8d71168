"""What this machine is, as far as it decides which engines run on it.

One probe, asked once. It opens no device, raises nothing, and knows nothing of manifests.
"""

import platform
from collections.abc import Iterable
from dataclasses import dataclass

from .gpus import Gpu, find_gpus
from .memory import total_bytes
from .processor import processor_features, processor_name
from .runtimes import RUNTIMES, Runtime, find_runtimes
from .threads import available_threads

__all__ = ["Machine", "probe_machine"]


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine.

    Attributes:
        system: Operating system and its version.
        architecture: Of the processor, as "x86_64" or "aarch64".
        processor: Its own name.
        features: What it has of the instructions that engines gain by.
        num_threads: That this process may use.
        memory_bytes: That this process may use at most; 0 if the kernel does not say.
        python: Version of the interpreter.
        gpus: NVIDIA GPUs that CUDA may use; the first is the one that engines run on.
        gpu_obstacle: Why there are none; empty if there are.
        driver: Version of the GPUs' driver; empty without one.
        cuda: Greatest CUDA version that the driver serves; empty if it does not say.
        runtimes: All that were looked for, also those that are not installed.
    """

    system: str
    architecture: str
    processor: str
    features: tuple[str, ...]
    num_threads: int
    memory_bytes: int
    python: str
    gpus: tuple[Gpu, ...]
    gpu_obstacle: str
    driver: str
    cuda: str
    runtimes: tuple[Runtime, ...]

    def runtime(self, name: str) -> Runtime:
        """The runtime of that name; one that nobody looked for counts as not installed."""
        return next((r for r in self.runtimes if r.name == name), Runtime(name))

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that engines run on; None without one."""
        return self.gpus[0] if self.gpus else None

    @property
    def has_cuda_provider(self) -> bool:
        """Whether ONNX Runtime can compute on the GPU."""
        runtime = self.runtime("onnxruntime")
        is_built_for_it = "CUDAExecutionProvider" in runtime.providers
        return bool(self.gpus) and runtime.is_usable and is_built_for_it


def probe_machine(runtimes: Iterable[str] = RUNTIMES) -> Machine:
    """Looks at this machine: a second where TensorRT is looked for, else less.

    Args:
        runtimes: Those to look for.
    """
    gpus = find_gpus()
    return Machine(
        system=f"{platform.system()} {platform.release()}".strip(),
        architecture=platform.machine(),
        processor=processor_name(),
        features=processor_features(),
        num_threads=available_threads(),
        memory_bytes=total_bytes() or 0,
        python=platform.python_version(),
        gpus=gpus.devices,
        gpu_obstacle=gpus.obstacle,
        driver=gpus.driver,
        cuda=gpus.cuda,
        runtimes=find_runtimes(runtimes),
    )
