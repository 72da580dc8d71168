"""TensorRT, for data centres and for RTX: plans are compiled ahead, and run on one kind of GPU."""

from .flavour import FLAVOURS, Flavour
from .plan import PlanPrecision, PlanReport, PlanSpec, PlanTensor, Profile, Role, TensorRange

__all__ = [
    "FLAVOURS",
    "Flavour",
    "PlanPrecision",
    "PlanReport",
    "PlanSpec",
    "PlanTensor",
    "Profile",
    "Role",
    "TensorRange",
]
