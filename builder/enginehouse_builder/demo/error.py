"""What goes wrong in making a demo model."""

__all__ = ["DemoError"]


class DemoError(Exception):
    """A demo model that could not be made, or is not good enough. The message says what to do."""
