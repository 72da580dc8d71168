"""The stage that times the original, so that what a prompt costs is known before it is asked."""

from enginehouse_builder.cache import code_digest, key_of, versions_of
from enginehouse_builder.certify import OriginalPace
from enginehouse_builder.reference_decoder import DecoderReference

from .context import ORIGINAL_TOOLS, Context
from .workplace import BUILDER, RESULT_CODE, Report, Result

__all__ = ["run_pace"]


def run_pace(
    context: Context, num_tokens: int, enough_s: float, report: Report
) -> Result[OriginalPace]:
    """Times the original on the beginning of a prompt of `num_tokens`.

    Args:
        context: Has the original.
        num_tokens: Of the longest prompt that it may be asked.
        enough_s: After so many seconds it is known that the prompt takes longer.
        report: Is told what goes on.
    """
    key = key_of(
        code_digest(
            [f"{BUILDER}.reference_decoder", *RESULT_CODE, f"{BUILDER}.stages.context", __name__]
        ),
        versions_of(*ORIGINAL_TOOLS),
        num_tokens=num_tokens,
        enough_s=enough_s,
        num_threads=context.place.num_threads,
        **context.original,
    )

    def make(_: object) -> OriginalPace:
        report("timing the original, for a prompt beyond all that changes with a text's length")
        return DecoderReference(context.resolved, context.spec).pace(num_tokens, enough_s)

    return context.place.run("pace", key, OriginalPace, make)
