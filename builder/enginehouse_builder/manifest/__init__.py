"""What a published version of a model is: the builder writes it, the server trusts it.

The manifest is the last file written into a version's folder, so its presence publishes the
version. This package needs the standard library alone, and imports nothing else of the builder.
"""

from .built import BuiltEngine, File
from .continuations import (
    NUM_TOP,
    Continuation,
    ContinuationFile,
    read_continuations,
    write_continuations,
)
from .file import (
    FILE_NAME,
    MANIFEST_VERSION,
    NAME_PATTERN,
    ManifestError,
    read_manifest,
    sha256_of,
    write_manifest,
)
from .generate import (
    AttentionLayer,
    DecoderEngine,
    GenerateCertificate,
    GenerateTask,
    GenerationDefaults,
    StepTime,
    TokenProbe,
)
from .plan import Plan, PlanProfile, PlanTensor
from .records import (
    Bucket,
    Certificate,
    ClassifyTask,
    Engine,
    Latency,
    Limits,
    Manifest,
    Probe,
    Source,
    StageTime,
    Tensor,
)
from .reference_file import ReferenceAnswer, ReferenceFile, read_reference, write_reference
from .typed_json import MismatchError, from_json, to_json

__all__ = [
    "FILE_NAME",
    "MANIFEST_VERSION",
    "NAME_PATTERN",
    "NUM_TOP",
    "AttentionLayer",
    "Bucket",
    "BuiltEngine",
    "Certificate",
    "ClassifyTask",
    "Continuation",
    "ContinuationFile",
    "DecoderEngine",
    "Engine",
    "File",
    "GenerateCertificate",
    "GenerateTask",
    "GenerationDefaults",
    "Latency",
    "Limits",
    "Manifest",
    "ManifestError",
    "MismatchError",
    "Plan",
    "PlanProfile",
    "PlanTensor",
    "Probe",
    "ReferenceAnswer",
    "ReferenceFile",
    "Source",
    "StageTime",
    "StepTime",
    "Tensor",
    "TokenProbe",
    "from_json",
    "read_continuations",
    "read_manifest",
    "read_reference",
    "sha256_of",
    "to_json",
    "write_continuations",
    "write_manifest",
    "write_reference",
]
