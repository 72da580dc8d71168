"""Turns a Hugging Face model into engines that are proven against it."""

__all__: list[str] = []
