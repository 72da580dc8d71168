"""Whether a build fits into this machine's memory: computed before anything slow."""

from enginehouse_server.engine.memory import available_bytes

from .errors import SpecError

__all__ = ["check_memory"]

_BYTES_OF_WEIGHT = 4  # the original is loaded in fp32
_MORE = 1.5  # and what is computed with them


def check_memory(num_weights: int, model: str, available: int | None = None) -> None:
    """Refuses a model whose weights in fp32, and half as much again, exceed the free memory.

    Args:
        num_weights: Numbers in the checkpoint.
        model: What the message calls it.
        available: Free memory; None asks the machine.

    Raises:
        SpecError: It does not fit; the message has the figures.
    """
    found = available_bytes() if available is None else available
    needed = int(num_weights * _BYTES_OF_WEIGHT * _MORE)
    if found is not None and needed > found:
        raise SpecError(
            f"{model} has {num_weights / 1e6:.0f} million weights: its build takes about "
            f"{_gigabytes(needed)} (in fp32 {_gigabytes(num_weights * _BYTES_OF_WEIGHT)}, and half "
            f"as much again), and {_gigabytes(found)} of memory are free. Build it on a larger "
            "machine and copy the repository, or raise this one's limit"
        )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
