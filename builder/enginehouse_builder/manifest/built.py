"""What a manifest says of every engine and every file."""

from dataclasses import dataclass

__all__ = ["BuiltEngine", "File"]


@dataclass(frozen=True, slots=True)
class File:
    """A file of the version's folder.

    Attributes:
        path: Relative to the folder, with forward slashes.
        sha256: In hexadecimal.
        size_bytes: Its length.
    """

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """One compiled form of the model.

    Attributes:
        backend: Which runtime loads it: "openvino" or "onnxruntime".
        target: What it was built for, as on the command line.
        model: Path of the file that the runtime is given, one of `files`.
        files: Everything that the runtime reads.
        runtime_version: Of the runtime that certified it.
        device: What it was certified and measured on.
    """

    backend: str
    target: str
    model: str
    files: tuple[File, ...]
    runtime_version: str
    device: str
