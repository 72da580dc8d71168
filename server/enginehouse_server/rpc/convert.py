"""Protobuf messages to the server's plain data and back."""

from collections.abc import Sequence
from time import monotonic

from enginehouse.v1 import inference_service_pb2 as inference_pb
from enginehouse.v1 import model_service_pb2 as model_pb
from enginehouse.v1 import types_pb2 as types_pb
from enginehouse_server.errors import InvalidRequestError
from enginehouse_server.repository import Entry
from enginehouse_server.tasks import Activation, ClassifyReply, ClassifyRequest, InputResult
from enginehouse_server.text import TextInput

__all__ = ["classify_request", "classify_response", "model_message"]

_ACTIVATIONS: dict[int, Activation | None] = {
    types_pb.ACTIVATION_UNSPECIFIED: None,
    types_pb.ACTIVATION_SOFTMAX: "softmax",
    types_pb.ACTIVATION_SIGMOID: "sigmoid",
    types_pb.ACTIVATION_NONE: "none",
}
_ACTIVATION_NUMBERS = {name: number for number, name in _ACTIVATIONS.items() if name}

_STATES = {
    "loading": types_pb.MODEL_STATE_LOADING,
    "ready": types_pb.MODEL_STATE_READY,
    "unloadable": types_pb.MODEL_STATE_UNLOADABLE,
    "draining": types_pb.MODEL_STATE_DRAINING,
}


def classify_request(
    message: inference_pb.ClassifyRequest, time_left_s: float | None
) -> ClassifyRequest:
    """The request of a message that arrives now.

    Args:
        message: As received.
        time_left_s: To the call's deadline; None without one.

    Raises:
        InvalidRequestError: The activation is unknown.
    """
    now = monotonic()
    if message.activation not in _ACTIVATIONS:
        raise InvalidRequestError(f"activation {message.activation} is unknown", "activation")
    return ClassifyRequest(
        inputs=[
            TextInput(source.text, source.text_pair if source.HasField("text_pair") else None)
            for source in message.inputs
        ],
        arrived_at=now,
        deadline=float("inf") if time_left_s is None else now + time_left_s,
        priority=message.priority,
        top_k=message.top_k if message.HasField("top_k") else None,
        activation=_ACTIVATIONS[message.activation],
        truncate=message.truncate,
    )


def classify_response(
    entry: Entry, labels: Sequence[str], reply: ClassifyReply
) -> inference_pb.ClassifyResponse:
    """The message for a reply."""
    return inference_pb.ClassifyResponse(
        model=entry.model,
        version=entry.version,
        results=[_result_message(labels, result) for result in reply],
    )


def model_message(entry: Entry) -> model_pb.Model:
    """The message for an entry of the catalog."""
    message = model_pb.Model(
        name=entry.model, version=entry.version, state=_STATES[entry.state], reason=entry.reason
    )
    loaded, classifier = entry.loaded, entry.classifier
    if loaded is None or classifier is None:
        return message
    manifest, traits, chosen = loaded.manifest, classifier.traits, loaded.chosen
    message.task = manifest.task
    message.labels.extend(traits.labels)
    message.activation = _ACTIVATION_NUMBERS[traits.activation]  # type: ignore[assignment]
    message.accepts_pairs = traits.accepts_pairs
    shapes = loaded.grid.shapes
    message.limits.CopyFrom(
        types_pb.ModelLimits(
            max_tokens=traits.max_tokens,
            max_batch=max(s.batch for s in shapes),
            max_batch_tokens=max(s.num_tokens for s in shapes),
            max_inputs=traits.max_inputs,
        )
    )
    message.engine.CopyFrom(
        types_pb.Engine(
            backend=loaded.engine.backend,
            target=chosen.target,
            precision=chosen.precision,
            runtime_version=loaded.engine.runtime_version,
            device=loaded.engine.device,
        )
    )
    certificate = chosen.certificate
    for name in ("reference", "num_samples", "max_abs_error", "mean_abs_error", "min_cosine"):
        setattr(message.engine.certificate, name, getattr(certificate, name))
    if certificate.top1_agreement is not None:
        message.engine.certificate.top1_agreement = certificate.top1_agreement
    message.engine.certificate.tolerance = certificate.tolerance
    message.source, message.source_sha256 = manifest.source.id, manifest.source.sha256
    return message


def _result_message(labels: Sequence[str], result: InputResult) -> inference_pb.ClassifyResult:
    return inference_pb.ClassifyResult(
        labels=[
            inference_pb.Label(label=labels[found.label], score=found.score, index=found.label)
            for found in result.labels
        ],
        num_tokens=result.num_tokens,
        truncated=result.truncated,
        timing=types_pb.Timing(
            tokenize_ms=1e3 * result.tokenize_s,
            queue_ms=1e3 * result.queue_s,
            compute_ms=1e3 * result.compute_s,
            total_ms=1e3 * result.total_s,
            batch_size=result.batch_size,
            padding_fraction=result.padding_fraction,
        ),
    )
