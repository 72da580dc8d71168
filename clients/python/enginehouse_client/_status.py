"""From a gRPC failure to an `EnginehouseError`: by the reason the server sent, else by the code."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status

from . import errors
from .errors import EnginehouseError

__all__ = ["Call", "error_from_rpc", "error_from_status"]

_DOMAIN = "enginehouse"
_DETAILS_KEY = "grpc-status-details-bin"
# What grpc.aio says, with INTERNAL, of a stream that the server ended while it was written to.
_ENDED_WHILE_WRITING = "Internal error from Core"
_BY_REASON: dict[str, type[EnginehouseError]] = {
    name: getattr(errors, name) for name in errors.__all__
}
_BY_CODE: dict[grpc.StatusCode, type[EnginehouseError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: errors.ModelNotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UnsupportedError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.UnloadableError,
    # An Enginehouse server gives a reason with these: without one it was the network.
    grpc.StatusCode.UNAVAILABLE: errors.ConnectionFailedError,
    grpc.StatusCode.CANCELLED: errors.ConnectionFailedError,
    grpc.StatusCode.INTERNAL: errors.InternalError,
    grpc.StatusCode.UNKNOWN: errors.InternalError,
    grpc.StatusCode.DATA_LOSS: errors.InternalError,
}
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class Call(NamedTuple):
    """What is known of a call when it fails: whom it went to, its id and its time."""

    target: str
    request_id: str
    timeout_s: float | None


@dataclass(slots=True)
class _Details:
    reason: str = ""
    request_id: str = ""
    field: str = ""
    retry_after_s: float | None = None


def error_from_rpc(failure: grpc.RpcError, call: Call) -> EnginehouseError:
    """The error that a failed call, of either gRPC interface, stands for."""
    code = failure.code()
    message = failure.details() or code.name
    details = _details(_packed_details(failure))
    if details.reason not in _BY_REASON:
        return _error_from_code(code, message, details, call)
    return _error(_BY_REASON[details.reason], message, code, details, call)


def error_from_status(status: Status, call: Call) -> EnginehouseError:
    """The error that the status of one request on a stream stands for."""
    code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    details = _details(status.details)
    if details.reason not in _BY_REASON:
        return _error_from_code(code, status.message, details, call)
    return _error(_BY_REASON[details.reason], status.message, code, details, call)


def _error_from_code(
    code: grpc.StatusCode, message: str, details: _Details, call: Call
) -> EnginehouseError:
    kind = _BY_CODE.get(code, EnginehouseError)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        kind = errors.InvalidRequestError
        message += (
            "; send fewer texts at once, or raise --max-message-bytes of the server"
            " and max_message_bytes of the client"
        )
    elif kind is errors.ConnectionFailedError or message == _ENDED_WHILE_WRITING:
        kind = errors.ConnectionFailedError
        message = f"no answer from a server at {call.target}: {message}"
    elif kind is errors.DeadlineError and call.timeout_s is not None:
        message = f"no answer from {call.target} within {call.timeout_s:g} s: {message}"
    elif kind is EnginehouseError:
        message = f"{call.target} answered {code.name}: {message}"
    return _error(kind, message, code, details, call)


def _error(
    kind: type[EnginehouseError],
    message: str,
    code: grpc.StatusCode,
    details: _Details,
    call: Call,
) -> EnginehouseError:
    return kind(
        message,
        code=code,
        request_id=details.request_id or call.request_id,
        field=details.field,
        retry_after_s=details.retry_after_s,
    )


def _packed_details(failure: grpc.RpcError) -> Iterable[AnyMessage]:
    metadata = cast(Iterable[tuple[str, bytes]], failure.trailing_metadata() or ())
    found = next((value for key, value in metadata if key == _DETAILS_KEY), b"")
    return cast(Iterable[AnyMessage], Status.FromString(found).details)


def _details(packed: Iterable[AnyMessage]) -> _Details:
    found = _Details()
    for item in packed:
        match item.TypeName():
            case "google.rpc.ErrorInfo":
                error_info = ErrorInfo.FromString(item.value)
                if error_info.domain == _DOMAIN:
                    found.reason = error_info.reason
                    found.request_id = error_info.metadata.get("request_id", "")
            case "google.rpc.RetryInfo":
                delay = RetryInfo.FromString(item.value).retry_delay
                found.retry_after_s = delay.seconds + delay.nanos / 1e9
            case "google.rpc.BadRequest":
                violations = BadRequest.FromString(item.value).field_violations
                found.field = violations[0].field if violations else ""
    return found
