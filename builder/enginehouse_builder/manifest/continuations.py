"""How the original went on with each prompt: published, so that any machine can certify again.

Of the logits for each token that followed, the greatest are kept and the logarithm of the sum of
all exponentials: enough to know each of their probabilities, and what all the others have together.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from .typed_json import from_json, to_json

__all__ = [
    "NUM_TOP",
    "Continuation",
    "ContinuationFile",
    "read_continuations",
    "write_continuations",
]

NUM_TOP = 32  # logits that are kept of each position


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt and what the original made of it.

    Attributes:
        text: Where the prompt is from.
        prompt: Token ids.
        tokens: The greedy tokens that followed.
        prompt_losses: Negative log-likelihood of each token of the prompt but the first, nats;
            empty where they were not computed.
        top_ids: For each of `tokens`, the likeliest at its place, best first.
        top_logits: Their logits.
        log_sums: For each of `tokens`, the logarithm of the sum of all exponentials of logits.
        medians: For each of `tokens`, the median of all logits; empty in files of earlier builds.
    """

    text: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    prompt_losses: tuple[float, ...]
    top_ids: tuple[tuple[int, ...], ...]
    top_logits: tuple[tuple[float, ...], ...]
    log_sums: tuple[float, ...]
    medians: tuple[float, ...] = ()

    @property
    def is_long(self) -> bool:
        """Whether it is there for its length, so that its own text is not judged."""
        return not self.prompt_losses


@dataclass(frozen=True, slots=True)
class ContinuationFile:
    """What the file holds.

    Attributes:
        reference: What answered, for example "transformers 5.23.0 fp32".
        samples_sha256: Of the sample texts.
        max_tokens: Longest sequence, prompt and answer.
        continuations: One for each prompt.
    """

    reference: str
    samples_sha256: str
    max_tokens: int
    continuations: tuple[Continuation, ...]


def write_continuations(found: ContinuationFile, file: Path) -> None:
    """Writes the file."""
    text = json.dumps(to_json(found), ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def read_continuations(file: Path) -> ContinuationFile:
    """Reads the file.

    Raises:
        ValueError: It does not hold what it should.
        OSError: It cannot be read.
    """
    document = json.loads(file.read_text(encoding="utf-8"))
    return from_json(ContinuationFile, document, "reference")
