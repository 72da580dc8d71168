"""The stages of a decoder's original, each cached by what it depends on."""

import time
from collections.abc import Sequence
from pathlib import Path

from enginehouse_builder.cache import code_digest, key_of, versions_of
from enginehouse_builder.certify import MIN_PROMPTS, ContinuationFile, Prompt, write_continuations
from enginehouse_builder.export import ExportedDecoder, export_decoder
from enginehouse_builder.reference_decoder import DecoderReference

from .context import ORIGINAL_TOOLS, Context
from .workplace import BUILDER, REFERENCE_FILE, RESULT_CODE, Report, Result

__all__ = ["run_export", "run_reference"]

_CODE = (*RESULT_CODE, f"{BUILDER}.stages.context", __name__)
_REPORT_EVERY = 8  # prompts


def run_export(context: Context, report: Report) -> Result[ExportedDecoder]:
    """Writes the canonical graph and the tokenizer."""
    key = key_of(
        code_digest([f"{BUILDER}.export", *_CODE]),
        versions_of("onnx", "onnx-ir", "onnxscript", "numpy", "safetensors", *ORIGINAL_TOOLS),
        task=context.resolved.task,
        max_tokens=context.spec.max_tokens,
        **context.original,
    )
    return context.place.run(
        "export",
        key,
        ExportedDecoder,
        lambda folder: export_decoder(context.resolved, context.spec, folder, report),
    )


def run_reference(
    context: Context, exported: ExportedDecoder, prompts: Sequence[Prompt], report: Report
) -> Result[ContinuationFile]:
    """Asks the original, in fp32: the prompts that a certificate needs, then while time is left."""
    tools = versions_of(*ORIGINAL_TOOLS)
    key = key_of(
        code_digest(
            [
                f"{BUILDER}.reference_decoder",
                f"{BUILDER}.certify.continuations",
                f"{BUILDER}.export",
                *_CODE,
            ]
        ),
        tools,
        prompts=[list(prompt) for prompt in prompts],
        samples=context.samples.sha256,
        max_tokens=exported.max_tokens,
        minutes=context.spec.certify_minutes,
        **context.original,
    )

    def make(folder: Path) -> ContinuationFile:
        report("loading the original")
        held = exported.max_tokens if exported.held_beyond else None
        original = DecoderReference(context.resolved, context.spec, held)
        ends_at = time.monotonic() + context.spec.certify_minutes * 60
        found = []
        for i, prompt in enumerate(prompts):
            if i > MIN_PROMPTS and time.monotonic() > ends_at:
                break
            if i % _REPORT_EVERY == 0:
                report(f"asking the original prompt {i + 1} of {len(prompts)}")
            found.append(original.continued(prompt))
        name = f"transformers {tools['transformers']} fp32"
        if held:
            name += f" with the rope of texts of {held} tokens"
        file = ContinuationFile(name, context.samples.sha256, exported.max_tokens, tuple(found))
        write_continuations(file, folder / REFERENCE_FILE)
        return file

    return context.place.run("reference", key, ContinuationFile, make)
