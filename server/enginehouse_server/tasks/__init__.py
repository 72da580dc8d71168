"""What a model does between an RPC and its engine: plain data in, plain data out."""

from .classify import Classifier, ClassifyReply, ClassifyRequest, InputResult
from .generate import Generator
from .generate_checks import GeneratorTraits, SamplingDefaults
from .generate_request import (
    Chat,
    GenerateRequest,
    Output,
    Prompt,
    PromptTokens,
    SamplingWish,
    ScoredToken,
    SequenceEnd,
    SequencePiece,
    Stopping,
    StructureSpec,
)
from .generation import Generation, News
from .prompts import PromptReader
from .scores import Activation

__all__ = [
    "Activation",
    "Chat",
    "Classifier",
    "ClassifyReply",
    "ClassifyRequest",
    "GenerateRequest",
    "Generation",
    "Generator",
    "GeneratorTraits",
    "InputResult",
    "News",
    "Output",
    "Prompt",
    "PromptReader",
    "PromptTokens",
    "SamplingDefaults",
    "SamplingWish",
    "ScoredToken",
    "SequenceEnd",
    "SequencePiece",
    "Stopping",
    "StructureSpec",
]
