"""What can be built on this machine: which runtimes are installed, and which GPU it has."""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["BACKENDS", "Host"]

BACKENDS = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")  # the better come first


class Host(NamedTuple):
    """A machine, as far as a build has to know it.

    Attributes:
        missing: Why a runtime cannot be built for here, by backend, and what to do; those not in it
            can.
        capability: Compute capability of its GPU as "sm90"; empty if it has none.
    """

    missing: Mapping[str, str]
    capability: str = ""
