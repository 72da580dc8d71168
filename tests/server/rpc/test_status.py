from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2

from enginehouse_server import errors
from enginehouse_server.rpc.status import CODES, code_of, status_of


def subclasses(of: type[errors.EnginehouseError]) -> Iterator[type[errors.EnginehouseError]]:
    for found in of.__subclasses__():
        yield found
        yield from subclasses(found)


def test_every_domain_error_has_a_code() -> None:
    assert set(subclasses(errors.EnginehouseError)) == set(CODES)


def test_every_domain_error_is_drawn_in_the_tree() -> None:
    for found in subclasses(errors.EnginehouseError):
        assert f" {found.__name__} " in str(errors.__doc__)


def test_an_unknown_error_tells_nothing_but_the_request() -> None:
    status = status_of(ValueError("the password is swordfish"), "abc")
    assert status.message == "internal error, request abc"
    assert code_of(ValueError()) is grpc.StatusCode.INTERNAL
    assert not status.details


def test_details_name_the_class_the_field_and_when_to_retry() -> None:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    overloaded = status_of(errors.OverloadedError("full", 1.5), "abc")
    assert overloaded.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("OverloadedError", "enginehouse")
    assert overloaded.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500
    bad = error_details_pb2.BadRequest()
    invalid = status_of(errors.InvalidRequestError("empty", "inputs[1].text"), "abc")
    assert invalid.details[1].Unpack(bad)
    assert bad.field_violations[0].field == "inputs[1].text"


@pytest.mark.parametrize("seconds", [0.0, -3.0])
def test_a_retry_is_never_asked_for_at_once(seconds: float) -> None:
    retry = error_details_pb2.RetryInfo()
    assert status_of(errors.OverloadedError("full", seconds), "x").details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() >= 50
