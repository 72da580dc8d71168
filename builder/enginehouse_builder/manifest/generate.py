"""What a manifest holds of a decoder."""

from dataclasses import dataclass
from typing import Literal

from .built import BuiltEngine

__all__ = [
    "AttentionLayer",
    "DecoderEngine",
    "GenerateCertificate",
    "GenerateTask",
    "GenerationDefaults",
    "StepTime",
    "TokenProbe",
]


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """Shape of one layer's attention, in the order of the cache's tensors.

    Attributes:
        num_heads: Of queries.
        num_kv_heads: Of keys and values.
        key_dim: Width of a key of one head.
        value_dim: Width of a value of one head.
        window: How many positions, itself included, a token sees; 0 for all before it.
        softcap: Bound `c` of scores, which become `c * tanh(score / c)`; 0 for none.
        has_slopes: Whether a score falls with the distance, by a slope of each head (ALiBi).
        has_sinks: Whether a logit of each head, without a value, takes part in the softmax.
    """

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int
    softcap: float = 0.0
    has_slopes: bool = False
    has_sinks: bool = False


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What the model's own generation_config.json says; None where it says nothing."""

    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None


@dataclass(frozen=True, slots=True)
class GenerateTask:
    """What serves a decoder.

    Attributes:
        vocab_size: Width of the logits.
        layers: Shape of each layer's attention.
        eos_ids: Tokens that end a sequence.
        has_chat_template: Whether the tokenizer's folder has one.
        defaults: Of sampling.
        is_mixture: Whether tokens choose among experts.
        lowered: Why sequences are shorter than the build was to allow; empty if they are not.
    """

    vocab_size: int
    layers: tuple[AttentionLayer, ...]
    eos_ids: tuple[int, ...]
    has_chat_template: bool
    defaults: GenerationDefaults
    is_mixture: bool = False
    lowered: str = ""


@dataclass(frozen=True, slots=True)
class GenerateCertificate:
    """How far the engine is from the original, on the same prompts.

    Attributes:
        reference: What the engine was compared with, for example "transformers 5.23.0 fp32".
        runtime: What ran the engine, for example "openvino 2026.4.1".
        samples_sha256: Of the sample texts, so that two certificates can be compared.
        num_prompts: How many prompts were continued.
        num_tokens: How many greedy tokens were compared.
        longest_prompt: Tokens of the longest prompt.
        token_agreement: Share of the greedy tokens that equal the original's, each sequence up to
            the first that differs; 1 is exact.
        top1_agreement: Share of positions with the same most likely token, given the original's
            own text before it.
        max_abs_error: Greatest absolute difference of a logit at those positions.
        mean_kl: Mean Kullback-Leibler divergence of the next token's distribution, nats.
        perplexity: Of the engine on the sample text.
        reference_perplexity: Of the original on the same.
        scale: How far the reference's logits are spread: the farthest of a likely token's from the
            median of its place. Of earlier builds, its largest absolute logit.
        tolerance: The bound on max_abs_error / scale that the build demanded.
    """

    reference: str
    runtime: str
    samples_sha256: str
    num_prompts: int
    num_tokens: int
    longest_prompt: int
    token_agreement: float
    top1_agreement: float
    max_abs_error: float
    mean_kl: float
    perplexity: float
    reference_perplexity: float
    scale: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class TokenProbe:
    """A prompt, the logits' largest values after it, and the greedy tokens that followed.

    Attributes:
        prompt: Token ids.
        tokens: What the certified engine went on with.
        top: The most likely first tokens with their logits, best first.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class StepTime:
    """Median time of one step, where it was measured.

    Attributes:
        kind: One chunk of a prompt, or one token of each of several sequences.
        num_sequences: In the step.
        num_tokens: New tokens of the step.
        num_cached: Tokens that each sequence had before.
        median_ms: The time.
    """

    kind: Literal["prefill", "decode"]
    num_sequences: int
    num_tokens: int
    num_cached: int
    median_ms: float


@dataclass(frozen=True, slots=True)
class DecoderEngine(BuiltEngine):
    """A compiled decoder.

    Attributes:
        precision: Of the weights, and of the arithmetic where that is not wider.
        cache_precision: Of cached keys and values.
        certificate: Its accuracy.
        probes: Prompts with the tokens that the certified engine went on with.
        step_times: Measured times.
        attention: "paged" by an operator of the runtime, over blocks that sequences may share;
            "slots" over a slot of each sequence, as long as the longest.
    """

    precision: Literal["fp32", "tf32", "bf16", "fp16", "int8", "int4", "fp8"]
    cache_precision: Literal["fp32", "bf16", "fp16", "u8"]
    certificate: GenerateCertificate
    probes: tuple[TokenProbe, ...]
    step_times: tuple[StepTime, ...]
    attention: Literal["paged", "slots"] = "paged"
