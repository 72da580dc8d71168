"""The embedded default: OpenVINO on any CPU."""

import sys

# Importing openvino reports the import to its vendor, unless the package that sends is missing. A
# server never calls home: make it look missing for the import, which then uses OpenVINO's own stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

from .decoder import OpenVinoDecoder  # noqa: E402
from .encoder import OpenVinoEncoder  # noqa: E402
from .slot_decoder import OpenVinoSlotDecoder  # noqa: E402

__all__ = ["OpenVinoDecoder", "OpenVinoEncoder", "OpenVinoSlotDecoder"]
