"""Which errors of CUDA end a context: one table, for both bindings and for runtimes' messages.

After some faults every further call of the process fails with the same error, until the process
ends; the driver's header says of each code whether it is one. Bindings and runtimes raise what they
like, but they all quote the driver: the code's name, or the driver's own words for it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from enginehouse_server.errors import DeviceError, DeviceLostError, EnginehouseError

from .base import DeviceMemory

__all__ = ["LOST", "device_error", "lost_by", "probe", "refused_memory", "reported"]

# Code -> how the driver words it (cuGetErrorString). Those of which cuda.h says that the process
# "must be terminated and relaunched" or is in "an inconsistent state", and four more that no call
# survives: memory or links found broken, and a context that is gone.
LOST = {
    "CUDA_ERROR_DEINITIALIZED": "driver shutting down",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "uncorrectable ECC error encountered",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE": "uncorrectable NVLink error detected",
    "CUDA_ERROR_CONTAINED": "Invalid access of peer GPU memory over nvlink or a hardware error",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "an illegal memory access was encountered",
    "CUDA_ERROR_LAUNCH_TIMEOUT": "the launch timed out and was terminated",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": "context is destroyed",
    "CUDA_ERROR_ASSERT": "device-side assert triggered",
    "CUDA_ERROR_HARDWARE_STACK_ERROR": "hardware stack error",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION": "an illegal instruction was encountered",
    "CUDA_ERROR_MISALIGNED_ADDRESS": "misaligned address",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE": "operation not supported on global/shared address space",
    "CUDA_ERROR_INVALID_PC": "invalid program counter",
    "CUDA_ERROR_LAUNCH_FAILED": "unspecified launch failure",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK": "tensor memory leak",
    "CUDA_ERROR_MPS_CLIENT_TERMINATED": "the MPS client has been terminated",
    "CUDA_ERROR_EXTERNAL_DEVICE": "an async error has occured in external entity outside of CUDA",
}
_RUNTIME_NAMES = "cudaError"  # the runtime library's names are the driver's in another spelling


def lost_by(text: str) -> str | None:
    """The code that a message quotes, if the context is lost by it; None otherwise."""
    plain = text.lower()
    for name, words in LOST.items():
        spelled = _RUNTIME_NAMES + name.removeprefix("CUDA_ERROR").replace("_", "")
        if name in text or words.lower() in plain or spelled.lower() in plain:
            return name
    return None


def device_error(error: Exception, doing: str) -> DeviceError:
    """The error of ours for one of a binding or runtime.

    Args:
        error: What was raised.
        doing: What failed, as a sentence that ends with its noun: "copying to the device".

    Returns:
        DeviceLostError where the context cannot compute any more.
    """
    code = lost_by(str(error))
    if code is None:
        return DeviceError(f"{doing} failed: {error}")
    return DeviceLostError(
        f"the CUDA device is lost ({code}) while {doing}: {error}; nothing computes on it until "
        "this process is restarted"
    )


def refused_memory(
    num_bytes: int, error: Exception, memory: Callable[[], DeviceMemory]
) -> DeviceError:
    """The error for memory that a device does not give, with what it has."""
    found = device_error(error, f"allocating {num_bytes} bytes on the device")
    if isinstance(found, DeviceLostError):
        return found
    left = memory()
    return DeviceError(
        f"the device has {left.free >> 20} of {left.total >> 20} MiB free, and "
        f"{num_bytes / 2**20:.1f} MiB are asked for ({error}): lower --cache-memory or "
        "--max-running, or end what else uses the device"
    )


def probe(*calls: Callable[[], object]) -> None:
    """Makes calls that a context which works never fails, and a lost one always does.

    Raises:
        DeviceLostError: One failed, whatever its code.
    """
    try:
        for call in calls:
            call()
    except DeviceLostError:
        raise
    except DeviceError as error:
        raise DeviceLostError(
            f"the CUDA device answers no call any more ({error}); nothing computes on it until "
            "this process is restarted"
        ) from error


@contextmanager
def reported(doing: str) -> Iterator[None]:
    """Raises what is raised within as an error of ours; ours pass as they are."""
    try:
        yield
    except EnginehouseError:
        raise
    except Exception as error:  # bindings have classes of their own for every kind
        raise device_error(error, doing) from error
