"""What engines are made from and judged by, whether from the original or from a version of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginehouse_server.text import Encoding

from .certify import ContinuationFile, ReferenceFile
from .manifest import Bucket, ClassifyTask, GenerateTask, Limits, Tensor
from .stages import Result

__all__ = ["DecoderSource", "EncoderSource", "content_key"]


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """A classifier's canonical graph and what belongs to it.

    Attributes:
        folder: Holds the graph.
        key: Names the graph's content.
        inputs: Of the graph.
        task: What the logits mean, and whether padding changes them.
        limits: What an engine takes.
        buckets: The shapes that batches are padded to.
        rows: Tokens of the reference's inputs.
        reference: The original's answers.
    """

    folder: Path
    key: str
    inputs: tuple[Tensor, ...]
    task: ClassifyTask
    limits: Limits
    buckets: tuple[Bucket, ...]
    rows: Sequence[Encoding]
    reference: Result[ReferenceFile]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return tuple(tensor.name for tensor in self.inputs)


@dataclass(frozen=True, slots=True)
class DecoderSource:
    """A decoder's canonical graph and what belongs to it.

    Attributes:
        folder: Holds the graph.
        key: Names the graph's content.
        inputs: Of the graph.
        task: What serves it.
        limits: What an engine takes.
        reference: The original's continuations.
    """

    folder: Path
    key: str
    inputs: tuple[Tensor, ...]
    task: GenerateTask
    limits: Limits
    reference: Result[ContinuationFile]


def content_key(hashes: Mapping[str, str]) -> str:
    """Names a graph by its files, wherever they lie.

    Args:
        hashes: SHA-256 by name of the file.
    """
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
