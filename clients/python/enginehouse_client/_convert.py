"""Between the plain data of messages.py and protobuf."""

from collections.abc import Sequence

from enginehouse.v1 import inference_service_pb2 as inference_pb
from enginehouse.v1 import model_service_pb2 as model_pb
from enginehouse.v1 import types_pb2 as types_pb

from ._status import Call, error_from_status
from .errors import InternalError
from .messages import (
    Activation,
    Certificate,
    Classification,
    ClassifyInput,
    ClassifyRequest,
    Engine,
    Label,
    Model,
    ModelLimits,
    ModelState,
    Result,
    StreamAnswer,
    TextPair,
    Timing,
)

__all__ = ["answer_from_pb", "classification_from_pb", "model_from_pb", "request_to_pb"]

_ACTIVATION_TO_PB: "dict[Activation | None, types_pb.Activation.ValueType]" = {
    None: types_pb.ACTIVATION_UNSPECIFIED,
    "softmax": types_pb.ACTIVATION_SOFTMAX,
    "sigmoid": types_pb.ACTIVATION_SIGMOID,
    "none": types_pb.ACTIVATION_NONE,
}
_ACTIVATION_FROM_PB: "dict[types_pb.Activation.ValueType, Activation | None]" = {
    pb: activation for activation, pb in _ACTIVATION_TO_PB.items()
}
_STATE_FROM_PB: "dict[types_pb.ModelState.ValueType, ModelState]" = {
    types_pb.MODEL_STATE_LOADING: "loading",
    types_pb.MODEL_STATE_READY: "ready",
    types_pb.MODEL_STATE_UNLOADABLE: "unloadable",
    types_pb.MODEL_STATE_DRAINING: "draining",
}


def request_to_pb(request: ClassifyRequest) -> inference_pb.ClassifyRequest:
    """The request as it is sent.

    Raises:
        ValueError: For an activation that there is not.
        TypeError: For an input that is neither a string nor a `TextPair`.
    """
    if request.activation not in _ACTIVATION_TO_PB:
        known = ", ".join(str(name) for name in _ACTIVATION_TO_PB)
        raise ValueError(f"activation is {request.activation!r}, must be one of {known}")
    return inference_pb.ClassifyRequest(
        model=request.model,
        version=request.version,
        version_label=request.version_label,
        priority=request.priority,
        inputs=[_input_to_pb(item) for item in _as_sequence(request.inputs)],
        top_k=request.top_k,
        activation=_ACTIVATION_TO_PB[request.activation],
        truncate=request.truncate,
    )


def classification_from_pb(
    response: inference_pb.ClassifyResponse, request_id: str
) -> Classification:
    """The answer to a request."""
    return Classification(
        model=response.model,
        version=response.version,
        results=tuple(_result_from_pb(result) for result in response.results),
        request_id=request_id,
    )


def answer_from_pb(response: inference_pb.ClassifyStreamResponse, target: str) -> StreamAnswer:
    """The answer to a request of a stream."""
    match response.WhichOneof("outcome"):
        case "response":
            outcome = classification_from_pb(response.response, response.id)
            return StreamAnswer(response.id, outcome)
        case "error":
            call = Call(target, response.id, timeout_s=None)
            return StreamAnswer(response.id, error_from_status(response.error, call))
        case _:
            text = f"the server's answer to {response.id!r} has neither labels nor an error"
            return StreamAnswer(response.id, InternalError(text, request_id=response.id))


def model_from_pb(model: model_pb.Model) -> Model:
    """One model, as the server describes it."""
    limits = model.limits
    return Model(
        name=model.name,
        version=model.version,
        task=model.task,
        state=_STATE_FROM_PB.get(model.state, "unknown"),
        reason=model.reason,
        labels=tuple(model.labels),
        activation=_ACTIVATION_FROM_PB.get(model.activation),
        accepts_pairs=model.accepts_pairs,
        limits=ModelLimits(
            max_tokens=limits.max_tokens,
            max_batch=limits.max_batch,
            max_batch_tokens=limits.max_batch_tokens,
            max_inputs=limits.max_inputs,
            cache_tokens=limits.cache_tokens,
        ),
        engine=_engine_from_pb(model.engine) if model.HasField("engine") else None,
        source=model.source,
        source_sha256=model.source_sha256,
        accepts_chat=model.accepts_chat,
    )


def _as_sequence(inputs: ClassifyInput | Sequence[ClassifyInput]) -> Sequence[ClassifyInput]:
    return (inputs,) if isinstance(inputs, (str, TextPair)) else inputs


def _input_to_pb(item: ClassifyInput) -> inference_pb.ClassifyInput:
    if isinstance(item, TextPair):
        return inference_pb.ClassifyInput(text=item.text, text_pair=item.text_pair)
    if not isinstance(item, str):
        raise TypeError(f"an input is a string or a TextPair, not {type(item).__name__}")
    return inference_pb.ClassifyInput(text=item)


def _result_from_pb(result: inference_pb.ClassifyResult) -> Result:
    timing = result.timing
    return Result(
        labels=tuple(Label(item.label, item.score, item.index) for item in result.labels),
        num_tokens=result.num_tokens,
        truncated=result.truncated,
        timing=Timing(
            tokenize_ms=timing.tokenize_ms,
            queue_ms=timing.queue_ms,
            compute_ms=timing.compute_ms,
            total_ms=timing.total_ms,
            batch_size=timing.batch_size,
            padding_fraction=timing.padding_fraction,
        ),
    )


def _engine_from_pb(engine: types_pb.Engine) -> Engine:
    certificate = engine.certificate
    has = certificate.HasField
    return Engine(
        backend=engine.backend,
        target=engine.target,
        precision=engine.precision,
        runtime_version=engine.runtime_version,
        device=engine.device,
        certificate=Certificate(
            reference=certificate.reference,
            num_samples=certificate.num_samples,
            max_abs_error=certificate.max_abs_error,
            mean_abs_error=certificate.mean_abs_error,
            min_cosine=certificate.min_cosine,
            top1_agreement=certificate.top1_agreement if has("top1_agreement") else None,
            tolerance=certificate.tolerance,
            token_agreement=certificate.token_agreement if has("token_agreement") else None,
            mean_kl=certificate.mean_kl if has("mean_kl") else None,
            perplexity=certificate.perplexity if has("perplexity") else None,
            reference_perplexity=(
                certificate.reference_perplexity if has("reference_perplexity") else None
            ),
        ),
        cache_precision=engine.cache_precision,
        passed_over=tuple(engine.passed_over),
    )
