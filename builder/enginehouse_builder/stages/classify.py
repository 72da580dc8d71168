"""The stages of a classifier's original, each cached by what it depends on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from enginehouse_builder.cache import code_digest, key_of, versions_of
from enginehouse_builder.certify import ReferenceAnswer, ReferenceFile, write_reference
from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export import ExportedClassifier, export_classifier
from enginehouse_builder.reference import Reference
from enginehouse_server.text import TextInput

from .context import ORIGINAL_TOOLS, Context
from .workplace import BUILDER, REFERENCE_FILE, RESULT_CODE, SERVER, Report, Result

__all__ = ["run_export", "run_reference"]

_CODE = (*RESULT_CODE, f"{BUILDER}.stages.context", __name__)


def run_export(context: Context, report: Report) -> Result[ExportedClassifier]:
    """Writes the canonical graph and the tokenizer."""
    key = key_of(
        code_digest([f"{BUILDER}.export", f"{SERVER}.text", *_CODE]),
        versions_of("onnx", "onnx-ir", "onnxscript", *ORIGINAL_TOOLS),
        task=context.resolved.task,
        max_tokens=context.spec.max_tokens,
        **context.original,
    )
    return context.place.run(
        "export",
        key,
        ExportedClassifier,
        lambda folder: export_classifier(context.resolved, context.spec, folder, report),
    )


def run_reference(
    context: Context, texts: Sequence[TextInput], max_tokens: int, report: Report
) -> Result[ReferenceFile]:
    """Asks the original, in fp32."""
    tools = versions_of(*ORIGINAL_TOOLS)
    key = key_of(
        code_digest([f"{BUILDER}.reference", f"{BUILDER}.export", *_CODE]),
        tools,
        texts=[list(text) for text in texts],
        samples=context.samples.sha256,
        max_tokens=max_tokens,
        **context.original,
    )

    def make(folder: Path) -> ReferenceFile:
        report(f"asking the original {len(texts)} samples")
        logits = Reference(context.resolved, context.spec).logits(texts, max_tokens)
        _check_numbers(texts, logits)
        answers = tuple(
            ReferenceAnswer(text.text, text.text_pair, tuple(row))
            for text, row in zip(texts, logits.tolist(), strict=True)
        )
        name = f"transformers {tools['transformers']} fp32"
        found = ReferenceFile(name, context.samples.sha256, max_tokens, answers)
        write_reference(found, folder / REFERENCE_FILE)
        return found

    return context.place.run("reference", key, ReferenceFile, make)


def _check_numbers(texts: Sequence[TextInput], logits: NDArray[np.float32]) -> None:
    wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if wrong.size:
        raise UnsupportedModelError(
            f"the original itself gives no number for {wrong.size} of {len(texts)} samples, first "
            f"{texts[wrong[0]].text[:60]!r}, in fp32: its weights are damaged, or it overflows"
        )
