"""The shapes that batches are padded to: close enough to pad little, few enough to warm all up."""

from .manifest import Bucket, ClassifyTask, Limits

__all__ = ["default_buckets", "lengths_up_to"]

_FIRST = 8  # tokens; shorter rows are padded to it
_STEP_UP_TO = ((40, 1), (64, 2), (128, 4), (256, 8), (512, 32), (2**30, 128))  # (length, step)
_BATCHES = (1, *(size << n for n in range(30) for size in (2, 3)))  # 1, 2, 3, 4, 6, 8, 12, …
_EQUAL_BATCHES = (1, 4)
_EQUAL_BATCHES_UP_TO = 64


def default_buckets(limits: Limits, task: ClassifyTask) -> tuple[Bucket, ...]:
    """Buckets for every length up to `max_tokens`, each with its batch sizes, ascending.

    Lengths rise in steps of a thirtieth to a tenth of themselves, so that texts of mixed length are
    padded by a few per cent. A model that padding changes has a bucket for each length, most of
    them for single rows: equal lengths seldom meet, and every shape must be warmed up.
    """
    if task.padding == "equal_length":
        lengths = range(1, limits.max_tokens + 1)
        return tuple(Bucket(n, _batches(n, limits, _equal_batches(n))) for n in lengths)
    return tuple(Bucket(n, _batches(n, limits, _BATCHES)) for n in lengths_up_to(limits.max_tokens))


def lengths_up_to(max_tokens: int) -> list[int]:
    """Lengths that rows are padded to, ascending, `max_tokens` the last."""
    lengths = [min(_FIRST, max_tokens)]
    for end, step in _STEP_UP_TO:
        while lengths[-1] < min(end, max_tokens):
            lengths.append(min(lengths[-1] + step, max_tokens))
    return lengths


def _equal_batches(length: int) -> tuple[int, ...]:
    return _EQUAL_BATCHES if length <= _EQUAL_BATCHES_UP_TO else _EQUAL_BATCHES[:1]


def _batches(length: int, limits: Limits, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes that the limits allow, and the greatest allowed one itself."""
    most = max(1, min(limits.max_batch, limits.max_batch_tokens // length, sizes[-1]))
    return (*(size for size in sizes if size < most), most)
