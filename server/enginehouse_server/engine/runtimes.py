"""Which runtimes are installed here and can be used, without loading more than it takes to tell.

What cannot be found out is said in words; nothing here raises. TensorRT is imported in a process
of its own: libraries that do not fit the machine can end the one that loads them.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata

from .asking import ask

__all__ = ["RUNTIMES", "Runtime", "find_runtime", "find_runtimes", "least_driver"]

_TIMEOUT_S = 60
_MODULES = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx"),
}
_DISTRIBUTIONS = {
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu13-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx"),
    "cuda-core": ("cuda-core",),
    "pycuda": ("pycuda",),
}
RUNTIMES = tuple(_DISTRIBUTIONS)
# Of NVIDIA's drivers, as TensorRT's installation guide has them for what is built for CUDA 12 and
# 13. Wheels alone are built for CUDA 12, and say so in their names.
_DRIVER_FOR_CUDA_12, _DRIVER_FOR_CUDA_13 = "535", "580"
_WHEELS_FOR_CUDA_12 = ("{}-cu12-libs", "{}-cu12-bindings", "{}-cu12")


@dataclass(frozen=True, slots=True)
class Runtime:
    """A package that runs engines, or that drives a GPU for one.

    Attributes:
        name: As a manifest's backend, or "cuda-core" or "pycuda".
        version: Empty if it is not installed.
        fault: Why it cannot be used although it is installed; empty if it can.
        providers: What ONNX Runtime can compute on, by its own names.
        has_bf16: Whether it computes in bf16 on this machine's processor.
    """

    name: str
    version: str = ""
    fault: str = ""
    providers: tuple[str, ...] = ()
    has_bf16: bool = False

    @property
    def is_usable(self) -> bool:
        """Whether it is installed, and nothing is known to be wrong with it."""
        return bool(self.version) and not self.fault


def find_runtimes(names: Iterable[str] = RUNTIMES) -> tuple[Runtime, ...]:
    """Looks for some of the runtimes, or for all."""
    return tuple(find_runtime(name) for name in names)


def find_runtime(name: str) -> Runtime:
    """Looks for one runtime, one of `RUNTIMES`; another is none that can be installed."""
    installed = [version for d in _DISTRIBUTIONS.get(name, ()) if (version := _version(d))]
    runtime = Runtime(name, installed[0] if installed else "")
    examine = _EXAMINED.get(name)
    try:
        if examine is not None and (installed or name in _MODULES):
            return examine(runtime)
    except Exception as error:  # a broken package may raise anything
        return replace(runtime, fault=f"{type(error).__name__}: {error}")
    return runtime


def least_driver(flavour: str) -> str:
    """Least version of the GPU's driver that a TensorRT, as it is installed here, takes.

    Args:
        flavour: "tensorrt" or "tensorrt-rtx".
    """
    if any(_version(wheel.format(flavour)) for wheel in _WHEELS_FOR_CUDA_12):
        return _DRIVER_FOR_CUDA_12
    return _DRIVER_FOR_CUDA_13


def _openvino(runtime: Runtime) -> Runtime:
    from .openvino.device import describe_device

    device = describe_device()
    return replace(runtime, version=device.runtime_version, has_bf16=device.has_bf16)


def _onnxruntime(runtime: Runtime) -> Runtime:
    if all(_version(distribution) for distribution in _DISTRIBUTIONS["onnxruntime"]):
        return replace(
            runtime,
            fault="both onnxruntime and onnxruntime-gpu are installed, and each overwrites the "
            "other's files",
        )
    import onnxruntime

    return replace(
        runtime,
        version=str(onnxruntime.__version__),
        providers=tuple(onnxruntime.get_available_providers()),
    )


def _tensorrt(runtime: Runtime) -> Runtime:
    """It can be there without a distribution of its own, as in NVIDIA's containers."""
    modules = [m for m in _MODULES[runtime.name] if importlib.util.find_spec(m) is not None]
    if not modules:
        missing = f"there is no module {_MODULES[runtime.name][0]}" if runtime.version else ""
        return replace(runtime, fault=missing)
    version, fault = _imported(modules[0])
    return replace(runtime, version=version or runtime.version or "?", fault=fault)


_EXAMINED: Mapping[str, Callable[[Runtime], Runtime]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt,
}


def _imported(module: str) -> tuple[str, str]:
    """A module's version as it says itself when imported elsewhere, and why it cannot be."""
    code = f"import {module} as m; print(m.__version__)"
    try:
        # -P: the current folder may hold anything under that name.
        ended = ask([sys.executable, "-P", "-c", code], _TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "", f"importing {module} took more than {_TIMEOUT_S} s"
    except OSError as error:
        return "", f"importing {module} could not be tried: {error.strerror}"
    if ended.returncode < 0:
        return "", f"importing {module} ends the process with signal {-ended.returncode}"
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["no word why"]
        return "", f"it cannot be imported: {lines[-1]}"
    return ended.stdout.strip(), ""


def _version(distribution: str) -> str:
    """Of an installed distribution; empty if it is not installed."""
    try:
        return metadata.version(distribution)
    except (metadata.PackageNotFoundError, ValueError):
        return ""
