"""How the original went on: a part of what is published, so the manifest's package has it."""

from enginehouse_builder.manifest import (
    NUM_TOP,
    Continuation,
    ContinuationFile,
    read_continuations,
    write_continuations,
)

__all__ = [
    "NUM_TOP",
    "Continuation",
    "ContinuationFile",
    "read_continuations",
    "write_continuations",
]
