"""The texts that an engine is calibrated and certified on: the shipped ones, or a user's own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from enginehouse_server.text import TextInput

from .errors import SpecError

__all__ = ["Samples", "read_samples", "samples_for"]

_SHIPPED = Path(__file__).parent / "certify" / "samples.txt"
_PAIR_EVERY = 4  # of shipped texts, for a model that takes pairs


@dataclass(frozen=True, slots=True)
class Samples:
    """Sample inputs.

    Attributes:
        inputs: Texts and pairs, in the file's order.
        sha256: Of the file, in hexadecimal.
    """

    inputs: tuple[TextInput, ...]
    sha256: str


def read_samples(file: Path | None) -> Samples:
    """Reads samples: one input a line, a tab before the second text of a pair.

    Args:
        file: A user's own; None is the shipped file.

    Raises:
        SpecError: The file cannot be read, is not UTF-8, holds no text, or half a pair.
    """
    path = file or _SHIPPED
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"the samples file {path} cannot be read: {error.strerror}") from error
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SpecError(
            f"the samples file {path} is not UTF-8 (byte {error.start} is "
            f"0x{error.object[error.start]:02x}): save it as UTF-8, one text a line"
        ) from error
    numbered = enumerate(lines, start=1)
    inputs = tuple(_input_of(line, f"line {i} of {path}") for i, line in numbered if line.strip())
    if not inputs:
        raise SpecError(
            f"the samples file {path} holds no text: give one text a line, "
            "a tab before the second text of a pair"
        )
    return Samples(inputs, hashlib.sha256(content).hexdigest())


def samples_for(samples: Samples, *, accepts_pairs: bool) -> tuple[TextInput, ...]:
    """The inputs as a model takes them.

    Where a model takes pairs and the samples have none, every fourth text is paired with the one
    after it.

    Raises:
        SpecError: There are pairs and the model takes none.
    """
    pairs = [i for i in samples.inputs if i.text_pair is not None]
    if pairs and not accepts_pairs:
        raise SpecError(
            f"the samples hold {len(pairs)} pairs, the first {pairs[0].text[:60]!r}, but the "
            "model judges single texts only: give samples without tabs"
        )
    return samples.inputs if pairs or not accepts_pairs else _with_pairs(samples.inputs)


def _with_pairs(inputs: Sequence[TextInput]) -> tuple[TextInput, ...]:
    following = [*inputs[1:], inputs[0]]
    return tuple(
        TextInput(one.text, other.text) if i % _PAIR_EVERY == 0 else one
        for i, (one, other) in enumerate(zip(inputs, following, strict=True))
    )


def _input_of(line: str, place: str) -> TextInput:
    text, tab, pair = line.partition("\t")
    if tab and not (text.strip() and pair.strip()):
        raise SpecError(
            f"{place} has a tab, but no text {'after' if text.strip() else 'before'} it: a tab "
            "stands between the two texts of a pair, and a single text has none"
        )
    return TextInput(text, pair if tab else None)
