"""Whether a build fits into this machine's memory: computed before anything slow."""

import ctypes
import gc

from enginehouse_server.engine.memory import available_bytes

from .errors import SpecError

__all__ = ["check_memory", "give_back_memory"]

_BYTES_OF_WEIGHT = 4  # the original is loaded in fp32
# Beside it or in its place come the traced graph, an engine's copy of the weights and a cache: at
# most 1.1 times them and 0.66 GB, measured on models of 109 to 366 million weights.
_MORE = 1.25
_ALWAYS_BYTES = 750_000_000


def check_memory(num_weights: int, model: str, available: int | None = None) -> None:
    """Refuses a model whose weights in fp32, and what comes with them, exceed the free memory.

    Args:
        num_weights: Numbers in the checkpoint.
        model: What the message calls it.
        available: Free memory; None asks the machine.

    Raises:
        SpecError: It does not fit; the message has the figures.
    """
    found = available_bytes() if available is None else available
    needed = int(num_weights * _BYTES_OF_WEIGHT * _MORE) + _ALWAYS_BYTES
    if found is not None and needed > found:
        raise SpecError(
            f"{model} has {num_weights / 1e6:.0f} million weights: its build takes about "
            f"{_gigabytes(needed)} (in fp32 {_gigabytes(num_weights * _BYTES_OF_WEIGHT)}, a "
            f"quarter more, and {_gigabytes(_ALWAYS_BYTES)}), and {_gigabytes(found)} of memory "
            "are free. "
            "Build it on a larger machine and copy the repository, or raise this one's limit"
        )


def give_back_memory() -> None:
    """Frees what a stage leaves behind, so that the next one's model does not come on top of it."""
    gc.collect()  # a model of torch refers to itself
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):  # of glibc
        library.malloc_trim(0)  # what was freed between things that stay


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
