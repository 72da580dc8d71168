"""What TensorRT is here, and what it runs on."""

from contextlib import closing

from enginehouse_server.engine.cuda import open_device
from enginehouse_server.engine.device import Device

from .flavour import Flavour, load_flavour

__all__ = ["describe_device"]

_FIRST_WITH_BF16 = (8, 0)  # compute capability


def describe_device(flavour: Flavour, cuda_binding: str) -> Device:
    """Asks the device.

    Raises:
        PlanMismatchError: TensorRT or the binding is not installed, or there is no device.
        DeviceError: The driver failed.
    """
    version = str(load_flavour(flavour).__version__)
    with closing(open_device(cuda_binding)) as device:
        info = device.info
    return Device(version, info.name, info.compute_capability >= _FIRST_WITH_BF16)
