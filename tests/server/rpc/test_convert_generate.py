import pytest

from enginehouse.v1 import generate_pb2 as generate_pb
from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_server.errors import InvalidRequestError
from enginehouse_server.rpc.convert_generate import generate_request


def choosing(number: int) -> pb.GenerateRequest:
    choices = generate_pb.Choices(texts=[str(i) for i in range(number)])
    return pb.GenerateRequest(structure=generate_pb.Structure(choices=choices))


def test_too_many_choices_are_refused_with_the_numbers() -> None:
    assert generate_request(choosing(1024), None).structure is not None
    with pytest.raises(InvalidRequestError, match="1025 texts; at most 1024") as error:
        generate_request(choosing(1025), None)
    assert error.value.field == "structure.choices"
