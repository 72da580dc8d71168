"""Proves that an engine answers as the original does, on sample texts."""

from .answers import (
    answer_alone,
    answer_batches,
    answer_padded,
    equal_length_batches,
    mixed_batches,
)
from .certify import Certified, Judged, certify
from .continuations import (
    NUM_TOP,
    Continuation,
    ContinuationFile,
    read_continuations,
    write_continuations,
)
from .padding import PaddingCheck, check_padding
from .prompts import (
    MIN_PROMPTS,
    Prompt,
    choose_prompts,
    long_prompt_tokens,
    new_tokens,
    tokens_at_once,
    usual_prompt_tokens,
)
from .reach import Budget, OriginalPace, Price, Reach, reach_of
from .reference_file import ReferenceAnswer, ReferenceFile, read_reference, write_reference
from .tokens import CertifiedDecoder, JudgedDecoder, certify_decoder
from .tolerance import TOLERANCES, Tolerance

__all__ = [
    "MIN_PROMPTS",
    "NUM_TOP",
    "TOLERANCES",
    "Budget",
    "Certified",
    "CertifiedDecoder",
    "Continuation",
    "ContinuationFile",
    "Judged",
    "JudgedDecoder",
    "OriginalPace",
    "PaddingCheck",
    "Price",
    "Prompt",
    "Reach",
    "ReferenceAnswer",
    "ReferenceFile",
    "Tolerance",
    "answer_alone",
    "answer_batches",
    "answer_padded",
    "certify",
    "certify_decoder",
    "check_padding",
    "choose_prompts",
    "equal_length_batches",
    "long_prompt_tokens",
    "mixed_batches",
    "new_tokens",
    "reach_of",
    "read_continuations",
    "read_reference",
    "tokens_at_once",
    "usual_prompt_tokens",
    "write_continuations",
    "write_reference",
]
