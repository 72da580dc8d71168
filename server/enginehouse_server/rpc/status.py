"""Domain errors as gRPC statuses: the one table, and the details that clients map back."""

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from enginehouse_server import errors

__all__ = ["CODES", "code_of", "status_of"]

DOMAIN = "enginehouse"

CODES: dict[type[errors.EnginehouseError], grpc.StatusCode] = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.NotReadyError: grpc.StatusCode.UNAVAILABLE,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    errors.DeviceError: grpc.StatusCode.UNAVAILABLE,
    errors.DeviceLostError: grpc.StatusCode.UNAVAILABLE,
    errors.UnloadableError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RepositoryError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PlanMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProbeError: grpc.StatusCode.FAILED_PRECONDITION,
}

_LEAST_RETRY_S = 0.05


def code_of(error: BaseException) -> grpc.StatusCode:
    """The status code of an error; INTERNAL for what is none of ours."""
    if isinstance(error, errors.EnginehouseError):
        return CODES[type(error)]
    return grpc.StatusCode.INTERNAL


def status_of(error: BaseException, request_id: str) -> status_pb2.Status:
    """The status of an error, with details.

    The text of an unknown error stays in the server: it may hold what is not the caller's to know.
    """
    number: int = code_of(error).value[0]
    if not isinstance(error, errors.EnginehouseError):
        return status_pb2.Status(code=number, message=f"internal error, request {request_id}")
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(
            reason=type(error).__name__, domain=DOMAIN, metadata={"request_id": request_id}
        )
    ]
    if isinstance(error, errors.OverloadedError):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(1000 * max(error.retry_after_s, _LEAST_RETRY_S)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, errors.InvalidRequestError) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=str(error)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    return status_pb2.Status(code=number, message=str(error), details=[_any(d) for d in details])


def _any(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
