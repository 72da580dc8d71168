"""What OpenVINO is here, and what it runs on."""

import openvino as ov

from enginehouse_server.engine.device import Device

__all__ = ["describe_device"]


def describe_device() -> Device:
    """Asks the CPU plugin."""
    core = ov.Core()
    return Device(
        runtime_version=ov.__version__.split("-", maxsplit=1)[0],
        name=str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
        has_bf16="BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    )
