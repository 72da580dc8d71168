"""What both bindings lack: host memory by its address, and captures that others begin."""

import ctypes
import math

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["array_at", "bytes_at", "ignore_captures_elsewhere"]

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


def bytes_at(address: int, num_bytes: int) -> "ctypes.Array[ctypes.c_char]":
    """So many bytes of memory as a writable buffer; whoever owns them must outlive it."""
    return (ctypes.c_char * num_bytes).from_address(address)


def array_at(
    address: int, num_bytes: int, shape: tuple[int, ...], dtype: DTypeLike
) -> NDArray[np.generic]:
    """The first bytes of memory as an array that shares them.

    Args:
        address: Of the memory, which must outlive the array.
        num_bytes: It has.
        shape: Of the array.
        dtype: Of the array.
    """
    kind = np.dtype(dtype)
    needed = math.prod(shape) * kind.itemsize
    assert needed <= num_bytes, f"{needed} bytes of a buffer of {num_bytes}"
    if not needed:
        return np.empty(shape, kind)
    array: NDArray[np.generic] = np.frombuffer(memoryview(bytes_at(address, needed)), kind)
    return array.reshape(shape)


def ignore_captures_elsewhere() -> None:
    """Lets this thread ask CUDA for memory while another thread captures, whichever library does.

    ONNX Runtime captures in the mode that forbids it to every thread of the process, but for those
    that have said, as here, that captures of their own alone concern them.
    """
    mode = ctypes.c_int(_THREAD_LOCAL)
    ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
