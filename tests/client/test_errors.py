import pickle

import grpc
import pytest

import enginehouse_client
from enginehouse_client import Client, EnginehouseError, RetryPolicy, errors
from enginehouse_client._status import Call, error_from_status
from enginehouse_server import errors as server_errors
from tests.client.fake_server import FakeServer, ScriptedError, status

CALL = Call("127.0.0.1:1", "request-1", 2.0)
NO_RETRY = RetryPolicy(max_attempts=1)


def fail_with(server: FakeServer, error: ScriptedError) -> EnginehouseError:
    async def step(_request: object) -> None:
        raise error

    server.step = step
    with Client(server.target, retry=NO_RETRY) as client, pytest.raises(EnginehouseError) as caught:
        client.classify("topics", "x", request_id="request-1")
    return caught.value


def test_every_error_of_the_server_has_its_name_here() -> None:
    assert set(server_errors.__all__) <= set(errors.__all__)


def test_every_error_is_exported_and_drawn() -> None:
    for name in errors.__all__:
        assert name in enginehouse_client.__all__
        assert name in (errors.__doc__ or "")


def test_every_reason_gives_its_class(server: FakeServer) -> None:
    for name in errors.__all__:
        error = fail_with(server, status(grpc.StatusCode.UNAVAILABLE, "what was wrong", name))
        assert type(error) is getattr(errors, name)
        assert str(error) == "what was wrong"
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert error.request_id == "request-1"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequestError),
        (grpc.StatusCode.NOT_FOUND, errors.ModelNotFoundError),
        (grpc.StatusCode.UNAVAILABLE, errors.ConnectionFailedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.OverloadedError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.UnsupportedError),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.UnloadableError),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
        (grpc.StatusCode.PERMISSION_DENIED, EnginehouseError),
    ],
)
@pytest.mark.parametrize("reason", ["", "ErrorOfALaterVersion"])
def test_without_a_known_reason_the_code_decides(
    code: grpc.StatusCode, kind: type[EnginehouseError], reason: str
) -> None:
    error = error_from_status(status(code, "what was wrong", reason).status, CALL)
    assert type(error) is kind
    assert error.code is code
    assert "what was wrong" in str(error)


def test_field_and_delay_are_carried(server: FakeServer) -> None:
    invalid = status(
        grpc.StatusCode.INVALID_ARGUMENT, "empty", "InvalidRequestError", field="inputs[2].text"
    )
    assert fail_with(server, invalid).field == "inputs[2].text"
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OverloadedError", 250)
    assert fail_with(server, full).retry_after_s == 0.25
    no_delay = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OverloadedError")
    assert fail_with(server, no_delay).retry_after_s is None


def test_reason_of_another_domain_is_not_ours() -> None:
    foreign = status(grpc.StatusCode.NOT_FOUND, "x", "DeviceError").status
    foreign.details[0].value = foreign.details[0].value.replace(b"enginehouse", b"elsewherexx")
    assert type(error_from_status(foreign, CALL)) is errors.ModelNotFoundError


def test_too_large_a_message_is_the_request_s_fault_and_names_the_option(
    server: FakeServer,
) -> None:
    with (
        Client(server.target, max_message_bytes=1000) as client,
        pytest.raises(errors.InvalidRequestError, match="--max-message-bytes") as caught,
    ):
        client.classify("topics", "x" * 2000)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not server.requests


def test_an_unreachable_server_is_named() -> None:
    with (
        Client("127.0.0.1:1", retry=NO_RETRY) as client,
        pytest.raises(errors.ConnectionFailedError, match=r"127\.0\.0\.1:1"),
    ):
        client.list_models()


def test_an_error_survives_pickling() -> None:
    error = errors.OverloadedError("full", request_id="r", retry_after_s=1.5)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (errors.OverloadedError, "full")
    assert (again.request_id, again.retry_after_s) == ("r", 1.5)
