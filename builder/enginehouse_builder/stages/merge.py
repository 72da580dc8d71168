"""The stage that merges an adapter into the weights, where there is one."""

from dataclasses import dataclass
from pathlib import Path

from enginehouse_builder.adapter import Adapter, layout_of, merge
from enginehouse_builder.cache import code_digest, key_of, versions_of
from enginehouse_builder.export.loading import empty_model

from .context import Context
from .workplace import BUILDER, RESULT_CODE, Report, Result

__all__ = ["Merged", "run_merge"]


@dataclass(frozen=True, slots=True)
class Merged:
    """What was changed."""

    num_weights: int


def run_merge(context: Context, adapter: Adapter, report: Report) -> Result[Merged]:
    """Writes the merged checkpoint into the result's folder."""
    key = key_of(
        code_digest(
            [
                f"{BUILDER}.adapter",
                f"{BUILDER}.weights",
                f"{BUILDER}.export.loading",
                *RESULT_CODE,
                f"{BUILDER}.stages.context",
                __name__,
            ]
        ),
        versions_of("torch", "safetensors", "transformers"),
        **context.original,
    )

    def make(folder: Path) -> Merged:
        layout = layout_of(empty_model(context.resolved, context.spec))
        merge(context.resolved.folder, layout, adapter, folder, report)
        return Merged(len(adapter.scales))

    return context.place.run("merge", key, Merged, make)
