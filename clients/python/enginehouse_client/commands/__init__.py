"""The client's own subcommands."""

__all__: list[str] = []
