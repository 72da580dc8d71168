"""Opens a CUDA device by the binding that was asked for, importing that one alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from enginehouse_server.errors import PlanMismatchError, UnsupportedError

from .base import CudaDevice

__all__ = ["BINDINGS", "CUDA_CORE", "PYCUDA", "obstacle_to_cuda", "open_device"]

CUDA_CORE, PYCUDA = "cuda-core", "pycuda"
BINDINGS = {CUDA_CORE: "cuda", PYCUDA: "pycuda"}  # the extra that installs each
_NO_DRIVER = ("libcuda", "driver library", "nvidia display driver")


def open_device(binding: str = CUDA_CORE, index: int = 0) -> CudaDevice:
    """Opens a device; whoever opens it closes it.

    Args:
        binding: "cuda-core" or "pycuda".
        index: Of the device, in the driver's order (CUDA_VISIBLE_DEVICES counts).

    Raises:
        PlanMismatchError: The binding is not installed, or this machine has no driver or no such
            device.
        UnsupportedError: There is no such binding.
        DeviceError: The driver failed.
    """
    if binding not in BINDINGS:
        raise UnsupportedError(f"there is no CUDA binding {binding!r}; it is one of {[*BINDINGS]}")
    with _explained(binding):
        if binding == PYCUDA:
            from .pycuda import PycudaDevice

            return PycudaDevice(index)
        from .cuda_core import CudaCoreDevice

        return CudaCoreDevice(index)


@cache
def obstacle_to_cuda(binding: str = CUDA_CORE) -> str | None:
    """Why no device can be opened here; None if one can. It is found out once."""
    try:
        open_device(binding).close()
    except Exception as error:  # whatever it is, there is nothing to compute on
        return str(error)
    return None


@contextmanager
def _explained(binding: str) -> Iterator[None]:
    """Says of a missing package or driver what to do."""
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__}: {error}".lower()
        if any(words in text for words in _NO_DRIVER):
            raise PlanMismatchError(
                "this machine has no NVIDIA driver (libcuda.so.1 is not found): install one, or "
                "give the container the device (docker run --gpus all)"
            ) from error
        if isinstance(error, ImportError):
            raise PlanMismatchError(
                f"the CUDA binding {binding} is not installed ({error}): pip install "
                f"'enginehouse[{BINDINGS[binding]}]'"
            ) from error
        raise
