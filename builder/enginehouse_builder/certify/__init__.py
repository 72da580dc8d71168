"""Proves that an engine answers as the original does, on sample texts."""

from .answers import (
    answer_alone,
    answer_batches,
    answer_padded,
    equal_length_batches,
    mixed_batches,
)
from .certify import Certified, Judged, certify
from .padding import PaddingCheck, check_padding
from .reference_file import ReferenceAnswer, ReferenceFile, read_reference, write_reference
from .tolerance import TOLERANCES, Tolerance

__all__ = [
    "TOLERANCES",
    "Certified",
    "Judged",
    "PaddingCheck",
    "ReferenceAnswer",
    "ReferenceFile",
    "Tolerance",
    "answer_alone",
    "answer_batches",
    "answer_padded",
    "certify",
    "check_padding",
    "equal_length_batches",
    "mixed_batches",
    "read_reference",
    "write_reference",
]
