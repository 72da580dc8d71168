"""The reference's own answers, published with a model so that any machine can certify again."""

import json
from dataclasses import dataclass
from pathlib import Path

from .typed_json import from_json, to_json

__all__ = ["ReferenceAnswer", "ReferenceFile", "read_reference", "write_reference"]


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """An input and the reference's logits for it."""

    text: str
    text_pair: str | None
    logits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ReferenceFile:
    """What the file holds.

    Attributes:
        reference: What answered, for example "transformers 5.23.0 fp32".
        samples_sha256: Of the sample texts.
        max_tokens: Length that longer inputs were cut to, the longer text of a pair first.
        answers: In the samples' order.
    """

    reference: str
    samples_sha256: str
    max_tokens: int
    answers: tuple[ReferenceAnswer, ...]


def write_reference(reference: ReferenceFile, file: Path) -> None:
    """Writes the file."""
    text = json.dumps(to_json(reference), indent=1, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def read_reference(file: Path) -> ReferenceFile:
    """Reads the file.

    Raises:
        ValueError: It does not hold what it should.
        OSError: It cannot be read.
    """
    return from_json(ReferenceFile, json.loads(file.read_text(encoding="utf-8")), "reference")
