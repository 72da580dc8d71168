"""The one call of grpc.health.v1 that the client makes, without the package that has its stubs.

HealthCheckRequest is one string and HealthCheckResponse one enum, each as field 1: on the wire they
are the same as the well-known wrappers.
"""

from google.protobuf.wrappers_pb2 import Int32Value, StringValue

__all__ = ["HEALTH_METHOD", "health_request", "is_serving"]

HEALTH_METHOD = "/grpc.health.v1.Health/Check"
_SERVING = 1


def health_request(service: str) -> StringValue:
    """Asks for the health of a model, or of the whole server if empty."""
    return StringValue(value=service)


def is_serving(response: Int32Value) -> bool:
    """Whether the answer is SERVING."""
    return response.value == _SERVING
