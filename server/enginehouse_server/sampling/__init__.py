"""How the next token is chosen from logits. Vectorised numpy; knows no engine and no texts."""

from .logprobs import TokenLogprobs, score_tokens
from .reduced import choose_reduced
from .sampler import Choice, choose
from .settings import SamplingSettings
from .state import SamplingState
from .structure import StructureCompiler, StructureMatcher, StructureSpec

__all__ = [
    "Choice",
    "SamplingSettings",
    "SamplingState",
    "StructureCompiler",
    "StructureMatcher",
    "StructureSpec",
    "TokenLogprobs",
    "choose",
    "choose_reduced",
    "score_tokens",
]
