"""Host memory by its address, as numpy and the bindings take it."""

import ctypes
import math

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["array_at", "bytes_at"]


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
