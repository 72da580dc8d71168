"""What is particular to a task: from the original, or from a version, to what is published."""

__all__: list[str] = []
