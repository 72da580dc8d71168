"""What an engine is told of a compiled plan: the manifest's words as the engine's own."""

from enginehouse_builder.manifest import Plan
from enginehouse_server.engine.base import PlanTraits

__all__ = ["traits_of"]


def traits_of(plan: Plan | None) -> PlanTraits | None:
    """What the engine has to know of a plan; None of an engine without one."""
    if plan is None:
        return None
    roles = tuple(profile.role for profile in plan.profiles)
    return PlanTraits(plan.version, plan.compute_capabilities, roles, plan.device_bytes)
