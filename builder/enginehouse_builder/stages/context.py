"""What the stages of the original have in common: those that export it and ask it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from enginehouse_builder.resolve import Resolved
from enginehouse_builder.samples import Samples
from enginehouse_builder.spec import BuildSpec

from .workplace import Workplace

__all__ = ["ORIGINAL_TOOLS", "Context"]

ORIGINAL_TOOLS = ("torch", "transformers", "tokenizers")

_DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")  # of the original, but weights


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage of the original may use.

    Attributes:
        place: What every stage may use.
        spec: What is asked for.
        resolved: The original.
        samples: Texts to calibrate and certify on.
    """

    place: Workplace
    spec: BuildSpec
    resolved: Resolved
    samples: Samples

    @property
    def original(self) -> dict[str, object]:
        """What the original depends on, for a key."""
        return {
            "weights": self.resolved.source.sha256,
            "descriptions": _descriptions_sha256(self.resolved.folder),
            "trust": self.spec.trust_remote_code,
        }


def _descriptions_sha256(folder: Path) -> str:
    """Of the files beside the weights, in folders too: labels, texts and code may change alone."""
    digest = hashlib.sha256()
    found = {
        p.relative_to(folder) for kind in _DESCRIPTIONS for p in folder.rglob(kind) if p.is_file()
    }
    for path in sorted(p for p in found if not p.parts[0].startswith(".")):
        digest.update(path.as_posix().encode() + b"\0" + (folder / path).read_bytes() + b"\0")
    return digest.hexdigest()
