"""The subcommands that look and tell: `check` and `machine`. They load no engine."""

__all__: list[str] = []
