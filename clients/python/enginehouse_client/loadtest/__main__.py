"""`python -m enginehouse_client.loadtest`: the same as `enginehouse loadtest`."""

from .command import loadtest

if __name__ == "__main__":
    loadtest()
