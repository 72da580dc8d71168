"""What a runtime is here, and what it runs on."""

from typing import NamedTuple

__all__ = ["Device"]


class Device(NamedTuple):
    """A device as a runtime sees it.

    Attributes:
        runtime_version: The runtime's version.
        name: The device's own name.
        has_bf16: Whether the runtime computes in bf16 on it.
        has_fp16: Whether it computes in fp16 on it.
        provider: Which part of the runtime computes, where it has several; else empty.
    """

    runtime_version: str
    name: str
    has_bf16: bool
    has_fp16: bool = False
    provider: str = ""
