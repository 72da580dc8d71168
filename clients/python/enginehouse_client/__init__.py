"""Calls an Enginehouse server."""

__all__: list[str] = []
