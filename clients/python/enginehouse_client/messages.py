"""What calls take and what they give, as plain data. Knows nothing of gRPC and protobuf."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from .errors import EnginehouseError

__all__ = [
    "Activation",
    "Certificate",
    "Classification",
    "ClassifyInput",
    "ClassifyRequest",
    "Engine",
    "Label",
    "Model",
    "ModelLimits",
    "ModelState",
    "Result",
    "StreamAnswer",
    "TextPair",
    "Timing",
]

Activation = Literal["softmax", "sigmoid", "none"]
"""How logits become scores: scores sum to 1, each by itself is in 0 to 1, or as they are."""

ModelState = Literal["loading", "ready", "unloadable", "draining", "unknown"]
"""How far a model is on its way to serving; "unknown" is one that this client is too old for."""


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts that are judged together, such as a premise and a hypothesis."""

    text: str
    text_pair: str


ClassifyInput: TypeAlias = str | TextPair
"""One text, or two that are judged together."""


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """What to classify, and how.

    Attributes:
        model: Name of the model as served.
        inputs: One input, or several in the order of the results.
        version: Version of the model; None is the newest served. Not with `version_label`.
        version_label: The operator's name for a version, such as "stable".
        priority: Among waiting requests the higher runs first; 0 if None.
        top_k: How many labels to return for each input, best first; None is all.
        activation: How logits become scores; None is as the model says.
        truncate: Cut an input that is too long for the model instead of failing the request.
    """

    model: str
    inputs: ClassifyInput | Sequence[ClassifyInput]
    version: int | None = None
    version_label: str | None = None
    priority: int | None = None
    top_k: int | None = None
    activation: Activation | None = None
    truncate: bool = False


@dataclass(frozen=True, slots=True)
class Label:
    """A label, how well it fits, and its position in the model's list of labels."""

    label: str
    score: float
    index: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one result went inside the server, and what it ran together with.

    Attributes:
        tokenize_ms: From the arrival of the request until its texts were tokens.
        queue_ms: From there until its batch was given to the engine.
        compute_ms: In the engine.
        total_ms: From the arrival until this result was ready to be sent.
        batch_size: Inputs, of this and other requests, in the same batch.
        padding_fraction: Share of the computed tokens that were padding, 0 to 1.
    """

    tokenize_ms: float
    queue_ms: float
    compute_ms: float
    total_ms: float
    batch_size: int
    padding_fraction: float


@dataclass(frozen=True, slots=True)
class Result:
    """What was found for one input.

    Attributes:
        labels: Best first.
        num_tokens: Tokens computed, special tokens included, padding not.
        truncated: The input was too long and was cut.
        timing: Where the time went.
    """

    labels: tuple[Label, ...]
    num_tokens: int
    truncated: bool
    timing: Timing


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to one request; one result for each input, in the same order.

    Attributes:
        model: Name of the model that answered.
        version: Version of the model that answered.
        results: One for each input.
        request_id: The request's id, as the server's logs have it; on a stream, its id there.
    """

    model: str
    version: int
    results: tuple[Result, ...]
    request_id: str


class StreamAnswer(NamedTuple):
    """The answer to one request of a stream: its id, and labels or the error it failed with."""

    id: str
    outcome: Classification | EnginehouseError


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What one request may ask of a model.

    Attributes:
        max_tokens: Longest input, special tokens included; of a decoder with its answer.
        max_batch: Most inputs in one batch; of a decoder, most sequences that run at once.
        max_batch_tokens: Most tokens, padding included, in one batch, or of one step.
        max_inputs: Most inputs in one request; of a decoder, most sequences from one prompt.
        cache_tokens: Most tokens that all running sequences keep in the cache; 0 without one.
    """

    max_tokens: int
    max_batch: int
    max_batch_tokens: int
    max_inputs: int
    cache_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Certificate:
    """How an engine's answers differ from those of the original model on the same texts.

    Attributes:
        reference: What the engine was compared with.
        num_samples: Number of texts compared.
        max_abs_error: Greatest absolute difference of a logit.
        mean_abs_error: Mean absolute difference of the logits.
        min_cosine: Least cosine similarity between the two logit vectors of a text.
        top1_agreement: Share of the texts whose best label is the same; None for regression.
        tolerance: Bound on the error, relative to how far logits vary, that the build demanded.
        token_agreement: Of a decoder, share of the greedy tokens that are the same.
        mean_kl: Of a decoder, mean divergence of the next token's distribution, nats.
        perplexity: Of a decoder, on the shipped text.
        reference_perplexity: Of the original model on the same text.
    """

    reference: str
    num_samples: int
    max_abs_error: float
    mean_abs_error: float
    min_cosine: float
    top1_agreement: float | None
    tolerance: float
    token_agreement: float | None = None
    mean_kl: float | None = None
    perplexity: float | None = None
    reference_perplexity: float | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """The compiled form in which a model runs.

    Attributes:
        backend: The runtime, for example "openvino".
        target: What the engine was built for, for example "tensorrt:sm90".
        precision: Its arithmetic, for example "fp32".
        runtime_version: Version of the runtime that runs it.
        device: The device it runs on, as the runtime names it.
        certificate: What its accuracy was proven to be.
        cache_precision: Of a decoder's cached keys and values; else empty.
        passed_over: Better engines that cannot be served there, each with the reason.
    """

    backend: str
    target: str
    precision: str
    runtime_version: str
    device: str
    certificate: Certificate
    cache_precision: str = ""
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """One version of a model in the server's repository.

    Attributes:
        name: Name, as requests give it.
        version: Version, a positive number.
        task: What it does: "classify" or "generate".
        state: Whether it answers requests.
        reason: Why the state is what it is, and what to do; empty when ready.
        labels: Names of the labels, by index.
        activation: How logits become scores unless a request says otherwise.
        accepts_pairs: Whether inputs may be a `TextPair`.
        limits: What one request may ask.
        engine: What runs it; None unless the model is ready.
        source: Where it came from: hub id or folder name.
        source_sha256: SHA-256 of the original weights, in hexadecimal.
        accepts_chat: Whether prompts may be a `Chat`.
    """

    name: str
    version: int
    task: str
    state: ModelState
    reason: str
    labels: tuple[str, ...]
    activation: Activation | None
    accepts_pairs: bool
    limits: ModelLimits
    engine: Engine | None
    source: str
    source_sha256: str
    accepts_chat: bool = False
