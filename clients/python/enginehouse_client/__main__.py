"""`python -m enginehouse_client` is the command `enginehouse`."""

from .cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
