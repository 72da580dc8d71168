"""What both clients are made of: settings, and how they become options, metadata and attempts."""

import ipaddress
import re
import uuid
from collections.abc import Mapping, Sequence

import grpc

from ._status import Call
from .errors import ConnectionFailedError
from .retry import Attempts, RetryBudget, RetryPolicy

__all__ = ["DEFAULT_MAX_MESSAGE_BYTES", "DEFAULT_TARGET", "ClientBase", "channel_options"]

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_MAX_MESSAGE_BYTES = 16 << 20  # the server's default, too
_GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")  # the server replaces others by its own


def channel_options(target: str, max_message_bytes: int) -> Sequence[tuple[str, int]]:
    """Options of a channel: message sizes, keepalive, and how soon a lost server is tried again."""
    options = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # Finds a dead peer under a call within 40 s. Idle connections are not pinged: proxies and
        # servers with gRPC's own defaults would answer that with too_many_pings.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        # gRPC's own bound is two minutes: too long after a restart.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if _is_loopback(target):
        options.append(("grpc.enable_http_proxy", 0))
    return options


class ClientBase:
    """Settings that both clients share.

    Args:
        target: Where the server is, as "host:port" or any other name that gRPC resolves.
        timeout_s: Time for a call, all its attempts together; None is without limit.
        retry: Which failed calls are tried again, and when.
        metadata: Sent with each call, keys in lower case.
        max_message_bytes: Longest message sent or taken.
        credentials: For TLS; None is plain text.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float | None = 30.0,
        retry: RetryPolicy | None = None,
        metadata: Mapping[str, str] | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._policy = retry or RetryPolicy()
        self._budget = RetryBudget()
        self._metadata = tuple((metadata or {}).items())
        self._max_message_bytes = max_message_bytes
        self._credentials = credentials
        self._is_closed = False

    def _options(self) -> Sequence[tuple[str, int]]:
        return channel_options(self.target, self._max_message_bytes)

    def _attempts(self, call: Call) -> Attempts:
        return Attempts(self._policy, self._budget, call.timeout_s)

    def _one_attempt(self, call: Call) -> Attempts:
        return Attempts(RetryPolicy(max_attempts=1), self._budget, call.timeout_s)

    def _new_call(self, timeout_s: float | None = None, request_id: str | None = None) -> Call:
        if request_id is not None and not _GOOD_ID.fullmatch(request_id):
            raise ValueError(
                f"request_id is {request_id!r}; it must be 1 to 128 printable ASCII characters "
                "without spaces"
            )
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        call = Call(self.target, request_id or uuid.uuid4().hex, timeout_s)
        if self._is_closed:
            raise self._closed(call)
        return call

    def _closed(self, call: Call) -> ConnectionFailedError:
        text = f"the client of {self.target} was closed: make another"
        return ConnectionFailedError(
            text, code=grpc.StatusCode.CANCELLED, request_id=call.request_id
        )

    def _metadata_of(self, call: Call) -> tuple[tuple[str, str], ...]:
        return (*self._metadata, ("x-request-id", call.request_id))


def _is_loopback(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
