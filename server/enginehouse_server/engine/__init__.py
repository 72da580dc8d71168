"""Runtimes behind two Protocols; the only place that imports them."""

__all__: list[str] = []
