"""Serves compiled engines over gRPC."""

__all__: list[str] = []
