"""CUDA as engines need it, behind one Protocol; a binding is imported when a device is opened."""

from .base import (
    CudaBuffer,
    CudaDevice,
    CudaEvent,
    CudaGraph,
    CudaInfo,
    CudaStream,
    DeviceMemory,
    PinnedBuffer,
)
from .open import BINDINGS, obstacle_to_cuda, open_device

__all__ = [
    "BINDINGS",
    "CudaBuffer",
    "CudaDevice",
    "CudaEvent",
    "CudaGraph",
    "CudaInfo",
    "CudaStream",
    "DeviceMemory",
    "PinnedBuffer",
    "obstacle_to_cuda",
    "open_device",
]
