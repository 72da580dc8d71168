"""What ONNX Runtime is here, and what it runs on."""

import onnxruntime as ort

from enginehouse_server.engine.device import Device
from enginehouse_server.engine.processor import processor_name

__all__ = ["describe_device"]


def describe_device() -> Device:
    """The provider for processors has no arithmetic in bf16."""
    return Device(str(ort.__version__), processor_name(), has_bf16=False)
