"""Matrices as small integers and steps: symmetric, so that a value is its level times its step.

Int8 has one step for each output channel. Int4 has one for each group of inputs of a channel:
sixteen levels are too few to serve the greatest and the most usual weight of a whole channel. A
step that cuts the greatest weights off may be the better one, so a few are tried for every group
and the one with the least squared error is taken (as in the weight clipping of AWQ, Lin et al.
2023, though without activations).
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GROUPS",
    "EightBits",
    "Levels",
    "group_for",
    "int4_levels",
    "int8_levels",
    "packed_int4",
]

EightBits = Literal["int8", "fp8"]
GROUPS = (128, 64, 32)  # inputs of a group; the first that divides their number is taken

_INT8_MOST = 127
_INT4_LEAST, _INT4_MOST = -8, 7
_CUTS = (1.0, 0.95, 0.9, 0.85, 0.8)
_BLOCK = 1 << 22  # elements that are rounded at a time


class Levels(NamedTuple):
    """A quantized matrix.

    Attributes:
        values: Levels, laid out as the matrix was.
        steps: `[out]`, or `[in / group, out]` in the matrix's layout.
    """

    values: NDArray[np.int8]
    steps: NDArray[np.float32]


def group_for(num_inputs: int) -> int | None:
    """Inputs of an int4 group for a channel of so many; None if no group fits."""
    return next((group for group in GROUPS if num_inputs % group == 0), None)


def int8_levels(matrix: NDArray[np.float32], axis: int) -> Levels:
    """A matrix whose output channels lie along `axis`, in levels of -127 to 127."""
    by_channel = np.moveaxis(matrix, axis, 0)  # [out, in]
    values = np.empty(matrix.shape, np.int8)
    target = np.moveaxis(values, axis, 0)
    steps = np.empty(len(by_channel), np.float32)
    count = max(1, _BLOCK // by_channel.shape[1])
    for start in range(0, len(by_channel), count):
        block = by_channel[start : start + count]
        step = np.abs(block).max(axis=1) / np.float32(_INT8_MOST)
        step[step == 0] = 1
        steps[start : start + count] = step
        target[start : start + count] = np.rint(block / step[:, None])
    return Levels(values, steps)


def int4_levels(matrix: NDArray[np.float32], axis: int, group: int) -> Levels:
    """A matrix whose output channels lie along `axis`, in levels of -8 to 7.

    Args:
        matrix: Of two dimensions.
        axis: Of the output channels.
        group: Inputs that share a step; divides their number.
    """
    by_input = np.moveaxis(matrix, axis, 1)  # [in, out]
    values = np.empty(matrix.shape, np.int8)
    target = np.moveaxis(values, axis, 1)
    steps = np.empty((by_input.shape[0] // group, by_input.shape[1]), np.float32)
    for i in range(len(steps)):
        rows = slice(i * group, (i + 1) * group)
        steps[i] = _best_steps(by_input[rows])
        target[rows] = _rounded(by_input[rows], steps[i])
    return Levels(values, np.ascontiguousarray(np.moveaxis(steps, 1, axis)))


def packed_int4(values: NDArray[np.int8]) -> bytes:
    """Levels two in a byte, the first in its lower half, as ONNX lays them out."""
    flat = values.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.int8(0))
    halves = flat.view(np.uint8) & np.uint8(0x0F)
    return (halves[::2] | (halves[1::2] << np.uint8(4))).tobytes()


def _best_steps(group: NDArray[np.float32]) -> NDArray[np.float32]:
    """The step of each channel of a group `[in, out]`."""
    greatest = np.abs(group).max(axis=0) / np.float32(_INT4_MOST)
    greatest[greatest == 0] = 1
    tried = [greatest * np.float32(cut) for cut in _CUTS]
    errors = [np.square(group - _rounded(group, step) * step).sum(axis=0) for step in tried]
    best: NDArray[np.float32] = np.choose(np.argmin(errors, axis=0), tried)
    return best


def _rounded(group: NDArray[np.float32], steps: NDArray[np.float32]) -> NDArray[np.float32]:
    levels: NDArray[np.float32] = np.clip(np.rint(group / steps), _INT4_LEAST, _INT4_MOST)
    return levels
