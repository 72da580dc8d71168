"""Types of tensors, as ONNX numbers them, ONNX Runtime names them and numpy holds them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BF16", "ELEMENTS", "FP16", "FP32", "INT32", "INT64", "Element", "element_of", "to_fp32"]


class Element(NamedTuple):
    """A type of numbers.

    Attributes:
        onnx: Its number in ONNX, which bindings take.
        dtype: What numpy holds it as; bf16 as its bits.
    """

    onnx: int
    dtype: "np.dtype[np.generic]"


FP32 = Element(1, np.dtype(np.float32))
FP16 = Element(10, np.dtype(np.float16))
BF16 = Element(16, np.dtype(np.uint16))
INT32 = Element(6, np.dtype(np.int32))
INT64 = Element(7, np.dtype(np.int64))
ELEMENTS = {
    "tensor(float)": FP32,
    "tensor(float16)": FP16,
    "tensor(bfloat16)": BF16,
    "tensor(int32)": INT32,
    "tensor(int64)": INT64,
}


def element_of(number: int) -> Element:
    """The type of a number of ONNX."""
    return next(element for element in ELEMENTS.values() if element.onnx == number)


def to_fp32(array: NDArray[np.generic], element: Element) -> NDArray[np.float32]:
    """Numbers of a floating type in fp32, exactly; the array itself if they are."""
    if element == BF16:  # fp32 without its lower half
        return (array.astype(np.uint32) << 16).view(np.float32)
    found: NDArray[np.float32] = np.asarray(array, np.float32)
    return found
