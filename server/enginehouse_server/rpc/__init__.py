"""The gRPC edge: protobuf to plain data and back. The only place with grpc or protobuf."""

from .server import GrpcServer

__all__ = ["GrpcServer"]
