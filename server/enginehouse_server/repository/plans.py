"""What an engine is told of a compiled plan: the manifest's words as the engine's own."""

from pathlib import Path

from enginehouse_builder.manifest import BuiltEngine, Plan
from enginehouse_server.engine.base import PlanTraits

__all__ = ["kernels_of", "traits_of"]


def kernels_of(built: BuiltEngine, state_dir: Path | None) -> Path | None:
    """Where the kernels of a plan are kept that are compiled here; None for nowhere."""
    if state_dir is None or built.plan is None:
        return None
    [digest] = [file.sha256 for file in built.files if file.path == built.model]
    return state_dir / "kernels" / digest


def traits_of(plan: Plan | None) -> PlanTraits | None:
    """What the engine has to know of a plan; None of an engine without one."""
    if plan is None:
        return None
    roles = tuple(profile.role for profile in plan.profiles)
    return PlanTraits(plan.version, plan.compute_capabilities, roles, plan.device_bytes)
