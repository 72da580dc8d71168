"""A plan on a device: read, refused where it does not fit this machine, and what is in it."""

# The binding's types are not pyright's.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
# pyright: reportOptionalMemberAccess=false

import logging
import mmap
import threading
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from enginehouse_server.engine.base import PlanTraits
from enginehouse_server.engine.cuda import CudaDevice
from enginehouse_server.errors import DeviceLostError, PlanMismatchError

from .context import PlanContext
from .failure import failed
from .flavour import Flavour, Handle
from .kernels import KernelCache, KernelOrigin
from .layers import keep_layers
from .logger import Complaints
from .memory import check_least

__all__ = ["IoTensor", "LoadedPlan", "Range"]

Shape = tuple[int, ...]
_log = logging.getLogger(__name__)
_NAMES_OF_BYTES = {
    1: ("INT8", "UINT8", "BOOL", "FP8"),
    2: ("HALF", "BF16"),
    4: ("FLOAT", "INT32"),
    8: ("INT64",),
}
_ITEM_BYTES = {name: size for size, names in _NAMES_OF_BYTES.items() for name in names}


class IoTensor(NamedTuple):
    """An input or output of a plan.

    Attributes:
        name: Of it.
        dtype: In TensorRT's words, for example "INT64".
        shape: A dynamic dimension is -1.
        is_input: Whether it is one.
        alias_of: The input whose memory an output must be given; empty for its own.
    """

    name: str
    dtype: str
    shape: Shape
    is_input: bool
    alias_of: str

    @property
    def item_bytes(self) -> int:
        """Of one element."""
        return _ITEM_BYTES[self.dtype]


class Range(NamedTuple):
    """Sizes of an input in a profile."""

    least: Shape
    most: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether a shape is within."""
        sizes = zip(self.least, shape, self.most, strict=True)
        return all(low <= size <= high for low, size, high in sizes)


class LoadedPlan:
    """A deserialized plan. Whoever loads it closes it, after all contexts are of no more use.

    Attributes:
        file: It was read from.
        weights_bytes: Of the device, about: the file's size.
        tensors: By name.
    """

    def __init__(
        self,
        file: Path,
        traits: PlanTraits | None,
        flavour: Flavour,
        trt: ModuleType,
        device: CudaDevice,
        kernels: Path | None = None,
    ) -> None:
        """Reads the plan, which puts its weights on the device: seconds.

        Args:
            file: Of the plan.
            traits: What its manifest says; None if nobody knows.
            flavour: Which TensorRT reads it.
            trt: That TensorRT.
            device: Where it is to run.
            kernels: Folder for what is found out about this plan here: the kernels that it has
                compiled, and its layers; None for none.

        Raises:
            PlanMismatchError: It is of another version or another GPU, cannot be read, or is larger
                than what the device has free.
        """
        if traits is not None:
            _check_version(file, traits, flavour, str(trt.__version__))
            _check_capability(file, traits, device)
        self.file, self._trt, self._making = file, trt, threading.Lock()
        self._compiles_here = flavour == "tensorrt-rtx"
        self.weights_bytes = file.stat().st_size
        least = max(self.weights_bytes, traits.device_bytes if traits else 0)
        check_least(least, device.memory(), file)
        self._complaints = Complaints.of(trt)  # outlives all that is made with it
        self._runtime = trt.Runtime(self._complaints)
        self._engine = self._deserialized(flavour)
        self._folder = kernels
        self._origin = KernelOrigin.of(str(trt.__version__), device.info)
        self._kernels = self._kernel_cache(kernels) if self._compiles_here else None
        engine = self._engine
        names = [str(engine.get_tensor_name(i)) for i in range(engine.num_io_tensors)]
        self.tensors = {name: self._tensor(name) for name in names}
        self._roles = traits.roles if traits else ("encode",) * engine.num_optimization_profiles
        if len(self._roles) != engine.num_optimization_profiles:
            raise PlanMismatchError(
                f"{file} has {engine.num_optimization_profiles} profiles, its manifest says "
                f"{len(self._roles)}: build the model again"
            )

    def profiles_of(self, role: str) -> list[int]:
        """The profiles that compute something.

        Raises:
            PlanMismatchError: There is none.
        """
        found = [i for i, of in enumerate(self._roles) if of == role]
        if not found:
            raise PlanMismatchError(
                f"{self.file} has no profile to {role}, but to {', '.join(self._roles)}: build the "
                "model again"
            )
        return found

    def range_of(self, name: str, profile: int) -> Range:
        """The sizes of an input in a profile."""
        least, _, most = self._engine.get_tensor_profile_shape(name, profile)
        return Range(tuple(least), tuple(most))

    def activation_bytes(self, profiles: list[int]) -> int:
        """Memory of the device that a context of any of these profiles works in."""
        sizes = [self._engine.get_device_memory_size_for_profile_v2(i) for i in profiles]
        return max(int(size) for size in sizes)

    def context(self) -> PlanContext:
        """A new context, which is to be given its memory. Any thread may call.

        Raises:
            DeviceError: The runtime made none.
        """
        with self._making:
            own = self._engine.create_execution_context(self._how())
        if own is None:
            raise failed(self._complaints, "making an execution context")
        return PlanContext(own, self._complaints, compiles_here=self._compiles_here)

    def keep_kernels(self) -> None:
        """Keeps for the next load what was compiled here, and the layers to be looked at.

        Nothing may be computing.
        """
        if self._kernels is not None:
            self._kernels.keep()
        if self._folder is not None:
            layers = self._folder / f"{self._origin.stem}.layers.json"
            keep_layers(self._engine, self._trt, layers)

    def close(self) -> None:
        """Releases plan and runtime. Twice is once."""
        self._kernels = None
        self._engine = self._runtime = None

    def _how(self) -> Handle:
        """How contexts are made: what allocates for them, and when kernels are compiled.

        TensorRT for RTX compiles kernels where the plan runs, and by default in the background: a
        run uses slower ones until then, and a graph would keep the slower ones for good.
        """
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._compiles_here:
            return strategy
        engine = self._engine
        runtime_config = engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(strategy)
        kinds = self._trt.DynamicShapesKernelSpecializationStrategy
        runtime_config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        if self._kernels is not None and not runtime_config.set_runtime_cache(self._kernels.own):
            _log.warning("%s: kernels are not kept: %s", self.file, self._complaints.last())
        return runtime_config

    def _kernel_cache(self, folder: Path | None) -> KernelCache | None:
        if folder is None:
            return None
        engine = self._engine
        runtime_config = engine.create_runtime_config()
        runtime_cache = runtime_config.create_runtime_cache()
        if runtime_cache is None:
            _log.warning("%s: kernels are not kept: %s", self.file, self._complaints.last())
            return None
        return KernelCache(runtime_cache, folder, self._origin)

    def _deserialized(self, flavour: Flavour) -> Handle:
        try:
            with (
                self.file.open("rb") as opened,
                mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                engine = self._runtime.deserialize_cuda_engine(content)
        except (OSError, ValueError) as error:
            raise PlanMismatchError(f"{self.file} cannot be read: {error}") from error
        if engine is None:
            failure = failed(self._complaints, f"reading {self.file}")
            if isinstance(failure, DeviceLostError):
                raise failure
            raise PlanMismatchError(
                f"{flavour} {self._trt.__version__} cannot read the plan {self.file}: {failure}; "
                "build the model again for this machine"
            )
        return engine

    def _tensor(self, name: str) -> IoTensor:
        engine = self._engine
        is_input = engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
        alias = "" if is_input else engine.get_aliased_input_tensor(name) or ""
        dtype = str(engine.get_tensor_dtype(name).name)
        if dtype not in _ITEM_BYTES:
            raise PlanMismatchError(
                f"{self.file}: its tensor {name} is {dtype}, which this server does not know: "
                "build the model again"
            )
        return IoTensor(name, dtype, tuple(engine.get_tensor_shape(name)), is_input, str(alias))


def _check_version(file: Path, traits: PlanTraits, flavour: Flavour, here: str) -> None:
    if traits.version != here:
        raise PlanMismatchError(
            f"{file} was compiled by {flavour} {traits.version}, and here is {here}, which reads "
            f"no plan of another version: install {traits.version}, or build the model again"
        )


def _check_capability(file: Path, traits: PlanTraits, device: CudaDevice) -> None:
    major, minor = device.info.compute_capability
    here = f"sm{major}{minor}"
    if here not in traits.compute_capabilities and "any" not in traits.compute_capabilities:
        raise PlanMismatchError(
            f"{file} runs on {', '.join(traits.compute_capabilities)}, and {device.info.name} is "
            f"{here}: build the model for it"
        )
