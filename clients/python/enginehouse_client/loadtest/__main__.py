"""`python -m enginehouse_client.loadtest`: the same as `enginehouse loadtest`."""

from .command import loadtest

__all__: list[str] = []

if __name__ == "__main__":
    loadtest()
