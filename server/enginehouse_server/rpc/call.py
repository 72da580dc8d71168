"""What every RPC does around its work: the request's id, errors as statuses, metrics and logs."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast
from uuid import uuid4

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from enginehouse_server.errors import EnginehouseError, InvalidRequestError
from enginehouse_server.telemetry import Metrics, RequestTelemetry

from .status import code_of, status_of

__all__ = ["Call", "Context", "Malformed", "Part", "TolerantRegistry"]

_log = logging.getLogger(__name__)
_REQUEST_ID = "x-request-id"
_ON_THE_WAY_S = 0.005
_GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")

# grpcio's classes are generic for type checkers alone.
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Method = grpc.RpcMethodHandler[Any, Any]
else:
    Context, Method = grpc.aio.ServicerContext, grpc.RpcMethodHandler


class Call:
    """One call, as a context: what its work raises becomes a status with details.

    Attributes:
        request_id: The caller's own, or made up; returned in the initial metadata.
        telemetry: Of the model that answers; set it as soon as that is known.
    """

    def __init__(self, rpc: str, context: Context, metrics: Metrics) -> None:
        self._rpc, self._context, self._metrics = rpc, context, metrics
        self._began, self._time_s = monotonic(), context.time_remaining()
        self.request_id = _request_id(context)
        self.telemetry: RequestTelemetry | None = None

    async def __aenter__(self) -> Self:
        # Sent while the work is done: a single request need not wait for it.
        sending = self._context.send_initial_metadata(((_REQUEST_ID, self.request_id),))
        self._metadata = asyncio.ensure_future(sending)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        code = self._code_of(error).name
        self._metrics.rpc_ended(self._rpc, code)
        if self.telemetry is not None:
            self.telemetry.request_ended(self._rpc, code, monotonic() - self._began)
        await self.metadata_sent()
        if isinstance(error, Exception):
            status = self.status_of(error)
            details = (("grpc-status-details-bin", status.SerializeToString()),)
            try:
                await self._context.abort(code_of(error), status.message, details)
            except grpc.aio.AbortError as aborted:
                self._context.add_done_callback(partial(_forget, aborted))  # type: ignore[arg-type]
                raise

    async def metadata_sent(self) -> None:
        """Waits until the initial metadata is out: a stream's messages must come after it."""
        # What fails here is a connection that is gone; whatever is sent next finds that out too.
        await asyncio.gather(self._metadata, return_exceptions=True)

    @property
    def time_left_s(self) -> float | None:
        """To the call's deadline; None without one."""
        return self._context.time_remaining()

    @contextmanager
    def part(self) -> Iterator["Part"]:
        """One request of several in this call: what it raises is kept as its status."""
        part, began = Part(), monotonic()
        error: BaseException | None = None
        try:
            yield part
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception):
                raise
            part.status = self.status_of(raised)
        finally:
            if part.telemetry is not None:
                part.telemetry.request_ended(
                    self._rpc, self._code_of(error).name, monotonic() - began
                )

    def _code_of(self, error: BaseException | None) -> grpc.StatusCode:
        if error is None:
            return grpc.StatusCode.OK
        if isinstance(error, Exception):
            return code_of(error)
        # gRPC cancels the work of a call whose deadline expires, too. The caller gives up first: a
        # timeout is sent rounded up, by at most 1 %, and takes its time on the way.
        left_s, time_s = self.time_left_s, self._time_s
        if left_s is not None and time_s is not None and left_s <= 0.01 * time_s + _ON_THE_WAY_S:
            return grpc.StatusCode.DEADLINE_EXCEEDED
        return grpc.StatusCode.CANCELLED

    def status_of(self, error: Exception) -> status_pb2.Status:
        """What the caller is told of an error; what it is not told is logged."""
        if not isinstance(error, EnginehouseError):
            fields = {"rpc": self._rpc, "request_id": self.request_id}
            _log.error("internal error", exc_info=error, extra=fields)
        return status_of(error, self.request_id)


def _forget(aborted: BaseException, _: Context) -> None:
    """Lets go of what a call worked on when it failed.

    gRPC keeps the exception of `abort` with the call, and the frames of its traceback keep the
    call: until the collector's next full round, minutes away, a stream that was not read would hold
    its whole answer. The frames are left alone: requests that fail together may share the error,
    and then it has frames of calls that go on.
    """
    error: BaseException | None = aborted
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


@dataclass(slots=True)
class Part:
    """A request within a call: the model's telemetry, once known, and its status, if it failed."""

    telemetry: RequestTelemetry | None = None
    status: status_pb2.Status | None = None


class Malformed:
    """Stands for a message that could not be decoded."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __getattr__(self, name: str) -> NoReturn:
        """Whatever is asked of the message, the answer is what is wrong with it."""
        raise InvalidRequestError(
            f"the request is no valid message ({self.reason}); text must be UTF-8"
        )


class TolerantRegistry:
    """Stands for a server while services are added to it, and makes their decoders tolerant.

    A call with an undecodable message then reaches its servicer, as `Malformed`; gRPC itself would
    answer it with INTERNAL, as if the server were at fault.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_registered_method_handlers(self, service: str, handlers: dict[str, "Method"]) -> None:
        """Adds the methods of a service."""
        tolerant = {name: _tolerant(method) for name, method in handlers.items()}
        self._server.add_registered_method_handlers(service, tolerant)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, tolerant),)
        )

    def add_generic_rpc_handlers(self, _: object) -> None:
        """The same methods once more, in the generated code's other form."""


def _tolerant(method: "Method") -> "Method":
    decode: Callable[[bytes], Message] = cast("Any", method).request_deserializer

    def tolerant(data: bytes) -> Message | Malformed:
        try:
            return decode(data)
        except DecodeError as error:
            return Malformed(str(error))

    return cast("Method", cast("Any", method)._replace(request_deserializer=tolerant))


def _request_id(context: Context) -> str:
    """The caller's id, if it is a short printable word, or a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == _REQUEST_ID and isinstance(value, str) and _GOOD_ID.fullmatch(value):
            return value
    return uuid4().hex
