"""What can go wrong in a build, as one tree; the command prints the message and exits.

    BuildError                   exit code 1: the build failed, nothing was published
    ├── SpecError                exit code 2: the command line asks for what cannot be
    ├── ResolveError             the source cannot be found, fetched or trusted
    ├── UnsupportedModelError    the model cannot be converted; the reason is named
    ├── ExportError              the conversion failed
    ├── QuantizeError            the graph cannot be quantized
    ├── CompileError             TensorRT does not take the graph, or not for that GPU
    ├── CertificateError         the engine's answers are too far from the original's
    └── PublishError             the repository cannot take the version

A message names what was wrong, the value, the limit and the remedy.
"""

__all__ = [
    "BuildError",
    "CertificateError",
    "CompileError",
    "ExportError",
    "PublishError",
    "QuantizeError",
    "ResolveError",
    "SpecError",
    "UnsupportedModelError",
]


class BuildError(Exception):
    """A build that ended without a version. The message says what to do."""

    exit_code = 1


class SpecError(BuildError):
    """The command line or its settings cannot be meant."""

    exit_code = 2


class ResolveError(BuildError):
    """The source cannot be found, fetched or trusted."""


class UnsupportedModelError(BuildError):
    """The model is of a kind that cannot be converted, or not exactly."""


class ExportError(BuildError):
    """The conversion to ONNX failed."""


class QuantizeError(BuildError):
    """The graph cannot be quantized."""


class CompileError(BuildError):
    """A graph cannot be compiled ahead, or not in that precision or for that GPU."""


class CertificateError(BuildError):
    """The engine's answers are further from the original's than its precision allows."""


class PublishError(BuildError):
    """The repository cannot take the version."""
