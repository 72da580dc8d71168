"""What a manifest holds, as dataclasses; a decoder's part is in generate.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .built import BuiltEngine, File
from .generate import DecoderEngine, GenerateTask

__all__ = [
    "Bucket",
    "Certificate",
    "ClassifyTask",
    "Engine",
    "Latency",
    "Limits",
    "Manifest",
    "Probe",
    "Source",
    "StageTime",
    "Tensor",
]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the original model came from.

    Attributes:
        id: Hub id, or the folder's name.
        revision: Commit on the hub, or empty for a folder.
        sha256: Of the original weight files, in hexadecimal.
        architecture: Class of the model in transformers.
    """

    id: str
    revision: str
    sha256: str
    architecture: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine takes; settings at serve time can only lower it.

    Attributes:
        max_tokens: Longest row, special tokens included; of a decoder, prompt and answer together.
        max_batch: Most rows in one batch; of a decoder, most sequences that run at once.
        max_batch_tokens: Most rows * padded length in one batch; of a decoder, most new tokens of
            a step.
    """

    max_tokens: int
    max_batch: int
    max_batch_tokens: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of the graph; a dimension is a number or the name of a dynamic one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class ClassifyTask:
    """What a classifier's logits mean.

    Attributes:
        labels: Names by index.
        problem: Decides how logits become scores: softmax, sigmoid, or as they are. One label is
            "multi_label", or "regression" if the model says so.
        accepts_pairs: Whether two texts can be judged together.
        padding: "invariant" if a text gets the same logits alone and padded in a batch;
            "equal_length" if only texts of one length may share a batch.
        pad_id: Token that fills a row up.
    """

    labels: tuple[str, ...]
    problem: Literal["single_label", "multi_label", "regression"]
    accepts_pairs: bool
    padding: Literal["invariant", "equal_length"]
    pad_id: int


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far the engine's logits are from the original's, on the same texts.

    Attributes:
        reference: What the engine was compared with, for example "transformers 5.23.0 fp32".
        runtime: What ran the engine, for example "openvino 2026.4.1".
        samples_sha256: Of the sample texts, so that two certificates can be compared.
        num_samples: How many texts.
        max_abs_error: Greatest absolute difference of a logit.
        mean_abs_error: Mean absolute difference of the logits.
        min_cosine: Least cosine similarity of two logit vectors.
        top1_agreement: Share of texts with the same best label (multi-label: share of equal
            decisions; regression: None).
        scale: What the reference's logits vary by: the farthest departure of one from its mean over
            the samples, of a single label after a row's own mean is taken out.
        tolerance: The bound on max_abs_error / scale that the build demanded.
    """

    reference: str
    runtime: str
    samples_sha256: str
    num_samples: int
    max_abs_error: float
    mean_abs_error: float
    min_cosine: float
    top1_agreement: float | None
    scale: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class Probe:
    """An input with the logits that the certified engine gave: asked again at every load."""

    text: str
    text_pair: str | None
    logits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A padded length and the batch sizes that it runs in."""

    length: int
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Latency:
    """Median time of one batch of that shape on one lane, the others idle, where measured."""

    batch: int
    length: int
    median_ms: float


@dataclass(frozen=True, slots=True)
class Engine(BuiltEngine):
    """A compiled encoder.

    Attributes:
        precision: Of the arithmetic, or of the weights where those are narrower.
        certificate: Its accuracy.
        probes: Inputs with their certified outputs.
        latency: Measured time by shape.
    """

    precision: Literal["fp32", "tf32", "bf16", "fp16", "int8", "int4", "fp8"]
    certificate: Certificate
    probes: tuple[Probe, ...]
    latency: tuple[Latency, ...]


@dataclass(frozen=True, slots=True)
class StageTime:
    """How long a stage of the build took; 0 where a cached result was used."""

    stage: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """One published version of a model.

    Attributes:
        model: Name as served.
        version: Positive.
        task: What it does; the field of that name holds what the task needs.
        classify: What a classifier needs, else None.
        generate: What a decoder needs, else None.
        source: Where the original came from.
        limits: What the engines take.
        inputs: Tensors of the graph, named as the tokenizer names them.
        outputs: Tensors of the graph.
        buckets: The shapes that an encoder's batches are padded to, ascending; none of a decoder.
        canonical: The canonical graph and its weights.
        text: Tokenizer and configuration files.
        reference: File with the sample inputs and the reference's own logits, so that a machine
            without transformers can certify an engine again.
        engines: Of an encoder, best first.
        decoders: Of a decoder, best first.
        created: UTC, ISO 8601.
        build: Seconds by stage.
        tools: Version by package.
    """

    model: str
    version: int
    task: Literal["classify", "generate"]
    classify: ClassifyTask | None
    generate: GenerateTask | None
    source: Source
    limits: Limits
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    buckets: tuple[Bucket, ...]
    canonical: tuple[File, ...]
    text: tuple[File, ...]
    reference: File
    engines: tuple[Engine, ...]
    decoders: tuple[DecoderEngine, ...]
    created: str
    build: tuple[StageTime, ...]
    tools: dict[str, str]

    @property
    def built(self) -> Sequence[BuiltEngine]:
        """The engines, whatever they are, best first."""
        return (*self.engines, *self.decoders)
