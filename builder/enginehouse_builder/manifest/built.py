"""What a manifest says of every engine and every file."""

from dataclasses import dataclass, field

from .plan import Plan

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
        backend: Which runtime loads it: "openvino", "onnxruntime", "tensorrt" or "tensorrt-rtx".
        target: What it was built for, as on the command line.
        model: Path of the file that the runtime is given, one of `files`.
        files: Everything that the runtime reads.
        runtime_version: Of the runtime that certified it.
        device: What it was certified and measured on.
        plan: What a TensorRT plan needs and takes; None of other backends.
        min_driver: Least version of the GPU's driver, for example "580.65"; empty if it has none.
    """

    backend: str
    target: str
    model: str
    files: tuple[File, ...]
    runtime_version: str
    device: str
    plan: Plan | None = field(default=None, kw_only=True)
    min_driver: str = field(default="", kw_only=True)
