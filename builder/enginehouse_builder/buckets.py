"""The shapes that batches are padded to: close enough that little is padded, few enough to warm all up.

Lengths rise in steps of an eighth to a quarter of themselves, so that a text is padded by about a
tenth at most on average; batch sizes rise likewise, up to the batch's token limit.
"""

from .manifest import Bucket, Limits

__all__ = ["default_buckets"]

_STEP_UP_TO = ((64, 2), (128, 4), (256, 8), (512, 32), (2**30, 128))  # (length, step)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def default_buckets(limits: Limits) -> tuple[Bucket, ...]:
    """Buckets for every length up to `max_tokens`, each with its batch sizes, ascending."""
    return tuple(Bucket(length, _batches(length, limits)) for length in _lengths(limits.max_tokens))


def _lengths(max_tokens: int) -> list[int]:
    lengths = [min(8, max_tokens)]
    for end, step in _STEP_UP_TO:
        while lengths[-1] < min(end, max_tokens):
            lengths.append(min(lengths[-1] + step, max_tokens))
    return lengths


def _batches(length: int, limits: Limits) -> tuple[int, ...]:
    most = max(1, min(limits.max_batch, limits.max_batch_tokens // length))
    return (*(b for b in _BATCHES if b < most), most)
