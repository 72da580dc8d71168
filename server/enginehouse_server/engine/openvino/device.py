"""What OpenVINO is here, and what it runs on."""

from typing import NamedTuple

import openvino as ov

__all__ = ["OpenVinoDevice", "describe_device"]


class OpenVinoDevice(NamedTuple):
    """A processor as OpenVINO sees it.

    Attributes:
        runtime_version: OpenVINO's version.
        name: The processor's own name.
        has_bf16: Whether it computes in bf16.
    """

    runtime_version: str
    name: str
    has_bf16: bool


def describe_device() -> OpenVinoDevice:
    """Asks the CPU plugin."""
    core = ov.Core()
    return OpenVinoDevice(
        runtime_version=ov.__version__.split("-", maxsplit=1)[0],
        name=str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
        has_bf16="BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    )
