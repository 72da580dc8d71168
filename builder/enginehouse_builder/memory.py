"""Whether a build fits into this machine's memory: computed before anything slow."""

import ctypes
import gc

from enginehouse_server.engine.memory import available_bytes

from .errors import SpecError
from .manifest import GenerateTask

__all__ = ["beside_weights", "check_cache", "check_memory", "give_back_memory", "prompt_bytes"]

_BYTES_OF_WEIGHT = 4  # the original is loaded in fp32
# Beside it or in its place come the traced graph, an engine's copy of the weights and a cache: at
# most 1.1 times them and 0.66 GB, measured on models of 109 to 366 million weights.
_MORE = 1.25
_ALWAYS_BYTES = 750_000_000
_FP32_BYTES = 4
_PIECE = 512  # tokens that the original reads at a time
# Plain attention has its scores three times at once: raw, masked, and as shares.
_SCORES = 3


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
    needed = _base_bytes(num_weights)
    if found is not None and needed > found:
        raise SpecError(
            f"{model} has {num_weights / 1e6:.0f} million weights: its build takes about "
            f"{_gigabytes(needed)} (in fp32 {_gigabytes(num_weights * _BYTES_OF_WEIGHT)}, a "
            f"quarter more, and {_gigabytes(_ALWAYS_BYTES)}), and {_gigabytes(found)} of memory "
            "are free. "
            "Build it on a larger machine and copy the repository, or raise this one's limit"
        )


def check_cache(
    num_weights: int, cache_bytes: int, model: str, available: int | None = None
) -> None:
    """Refuses a decoder whose keys and values do not fit beside its weights in the free memory.

    Args:
        num_weights: Numbers in the checkpoint.
        cache_bytes: Of the largest cache that the build cannot do without: the certificate's. Times
            are measured with what is left.
        model: What the message calls it.
        available: Free memory; None asks the machine.

    Raises:
        SpecError: It does not fit; the message has the figures.
    """
    found = available_bytes() if available is None else available
    needed = _base_bytes(num_weights) + cache_bytes
    if found is not None and needed > found:
        raise SpecError(
            f"certifying {model} takes about {_gigabytes(needed)} ({_gigabytes(cache_bytes)} of it "
            f"for cached keys and values), and {_gigabytes(found)} of memory are free: lower "
            "--max-tokens, or build it on a larger machine and copy the repository"
        )


def beside_weights(num_weights: int, available: int | None = None) -> int | None:
    """Free memory that a build's models leave; None where the kernel does not say what is free."""
    found = available_bytes() if available is None else available
    return None if found is None else max(0, found - _base_bytes(num_weights))


def prompt_bytes(task: GenerateTask, num_tokens: int, *, has_cache: bool) -> int:
    """What the original needs beside its weights to read a prompt, about: its largest tensors.

    Args:
        task: Has the shapes of its layers.
        num_tokens: Of the prompt and its answer.
        has_cache: Whether it reads piece by piece; else all at once.
    """
    rows = min(_PIECE, num_tokens) if has_cache else num_tokens
    scores = max(layer.num_heads for layer in task.layers) * rows * num_tokens * _SCORES
    # Keys and values are copied when they grow, and repeated for heads that share them.
    widest = max(layer.num_heads * (layer.key_dim + layer.value_dim) for layer in task.layers)
    kept = sum(layer.num_kv_heads * (layer.key_dim + layer.value_dim) for layer in task.layers)
    logits = 2 * rows * task.vocab_size
    return _FP32_BYTES * (scores + num_tokens * (kept + 2 * widest) + logits)


def _base_bytes(num_weights: int) -> int:
    return int(num_weights * _BYTES_OF_WEIGHT * _MORE) + _ALWAYS_BYTES


def give_back_memory() -> None:
    """Frees what a stage leaves behind, so that the next one's model does not come on top of it."""
    gc.collect()  # a model of torch refers to itself
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):  # of glibc
        library.malloc_trim(0)  # what was freed between things that stay


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
