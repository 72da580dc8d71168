"""The two TensorRTs, which have one programming interface: for data centres, and for RTX."""

import importlib
from types import ModuleType
from typing import Any, Literal, TypeAlias

from enginehouse_server.errors import PlanMismatchError

__all__ = ["FLAVOURS", "Flavour", "Handle", "load_flavour"]

Flavour = Literal["tensorrt", "tensorrt-rtx"]
Handle: TypeAlias = Any  # an object of a binding, which has no types

# The binding has a second name where the vendor's own meta-package is installed.
_MODULES: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
FLAVOURS = tuple(_MODULES)


def load_flavour(flavour: Flavour) -> ModuleType:
    """The binding of a flavour.

    Raises:
        PlanMismatchError: It is not installed, or its libraries are not.
    """
    reasons = []
    for name in _MODULES[flavour]:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(str(error))
    raise PlanMismatchError(
        f"{flavour} is not installed ({'; '.join(reasons)}): pip install 'enginehouse[{flavour}]'"
        + (
            ", with the vendor's own package index, which alone has its libraries"
            if flavour == "tensorrt"
            else ""
        )
    )
