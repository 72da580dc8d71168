"""Shows what is said of a plan: what runs it, in which shapes, and what proved it."""

import json
from collections import Counter
from pathlib import Path

from enginehouse_builder.manifest import BuiltEngine, PlanProfile

from .tables import size

__all__ = ["plan_facts"]

_CERTIFIED = {
    "runtime": "by running it",
    "lowered": "by the same graph on ONNX Runtime; its first load on a GPU certifies it itself",
}
_LAYERS = ".layers.json"
_MOST_KINDS = 8


def plan_facts(engine: BuiltEngine, folder: Path) -> dict[str, str]:
    """What is particular to a plan; nothing of an engine that is none.

    Args:
        engine: Of a version.
        folder: Of the version: its file of layers is read.
    """
    plan = engine.plan
    if plan is None:
        return {}
    facts = {
        "plan": f"{plan.flavour} {plan.version}, "
        f"{size(sum(f.size_bytes for f in engine.files if f.path == engine.model))}, at least "
        f"{size(plan.device_bytes)} of a GPU's memory",
        "runs on": ", ".join(plan.compute_capabilities),
        "certified": _CERTIFIED[plan.certified],
        "profiles": "; ".join(_profile(profile) for profile in plan.profiles),
    }
    for file in engine.files:
        if file.path.endswith(_LAYERS):
            facts["layers"] = _layers(folder / file.path)
    return facts


def _profile(profile: PlanProfile) -> str:
    first = profile.inputs[0]
    shapes = " to ".join("x".join(map(str, shape)) for shape in (first.min, first.max))
    return f"{profile.role} {shapes}"


def _layers(file: Path) -> str:
    try:
        kinds = Counter(layer["type"] for layer in json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unknown: {file} cannot be read ({error})"
    shown = [f"{count} {kind.lower()}" for kind, count in kinds.most_common(_MOST_KINDS)]
    more = [f"{len(kinds) - _MOST_KINDS} kinds more"] if len(kinds) > _MOST_KINDS else []
    return f"{kinds.total()}: {', '.join([*shown, *more])}"
