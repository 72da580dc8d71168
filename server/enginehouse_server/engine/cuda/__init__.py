"""CUDA as engines need it, behind one Protocol."""

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

__all__ = [
    "CudaBuffer",
    "CudaDevice",
    "CudaEvent",
    "CudaGraph",
    "CudaInfo",
    "CudaStream",
    "DeviceMemory",
    "PinnedBuffer",
]
