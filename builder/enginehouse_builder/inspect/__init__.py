"""The subcommand `inspect`: what a repository holds, and how it was proven."""

__all__: list[str] = []
