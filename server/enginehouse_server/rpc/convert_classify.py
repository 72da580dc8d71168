"""Messages about classifying to the server's plain data and back."""

from collections.abc import Sequence
from time import monotonic

from enginehouse.v1 import inference_service_pb2 as inference_pb
from enginehouse.v1 import types_pb2 as types_pb
from enginehouse_server.errors import InvalidRequestError
from enginehouse_server.repository import Entry
from enginehouse_server.tasks import Activation, ClassifyReply, ClassifyRequest, InputResult
from enginehouse_server.text import TextInput

__all__ = ["classify_request", "classify_response"]

_ACTIVATIONS: dict[int, Activation | None] = {
    types_pb.ACTIVATION_UNSPECIFIED: None,
    types_pb.ACTIVATION_SOFTMAX: "softmax",
    types_pb.ACTIVATION_SIGMOID: "sigmoid",
    types_pb.ACTIVATION_NONE: "none",
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
