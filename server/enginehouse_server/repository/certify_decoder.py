"""How far a decoder is from the original on all that its reference file has."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from enginehouse_builder.manifest import Continuation, Manifest, read_continuations
from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import DecoderEngine, StepItem

from .certify import Deviation, read_reference_with

__all__ = ["measure_decoder"]


def measure_decoder(
    engine: DecoderEngine, folder: Path, manifest: Manifest, check: Callable[[], None]
) -> Deviation:
    """Gives it the prompts and, beside each other, what the original went on with.

    Of each logit that the file has the difference counts, so that no token has to be chosen: what
    the engine would choose is the original's token, or one that is as likely within that.

    Args:
        engine: None of its blocks is in use; afterwards they are cleared.
        folder: Of the version.
        manifest: Of it.
        check: Called between prompts; what it raises ends it.

    Raises:
        RepositoryError: The reference file cannot be read.
        DeviceError: The runtime failed.
    """
    reference = read_reference_with(read_continuations, folder, manifest)
    limits = engine.limits
    longest = min(limits.max_tokens, limits.num_blocks * limits.block_size)
    texts = [t for t in reference.continuations if len(t.prompt) + len(t.tokens) <= longest]
    worst = 0.0
    for group in _groups(texts, engine):
        check()
        for error in _errors(engine, group):
            worst = float(np.maximum(worst, error))  # keeps what is no number
    engine.clear_blocks(range(limits.num_blocks))
    return Deviation(reference.reference, len(texts), worst)


def _groups(
    texts: Sequence[Continuation], engine: DecoderEngine
) -> Iterator[list[tuple[Continuation, range]]]:
    """Texts that run beside each other, each with its blocks."""
    limits = engine.limits
    group: list[tuple[Continuation, range]] = []
    first = 0
    for text in texts:
        count = -(-(len(text.prompt) + len(text.tokens)) // limits.block_size)
        is_full = len(group) == limits.max_sequences or first + count > limits.num_blocks
        if group and is_full:
            yield group
            group, first = [], 0
        group.append((text, range(first, first + count)))
        first += count
    if group:
        yield group


def _errors(engine: DecoderEngine, group: Sequence[tuple[Continuation, range]]) -> Iterator[float]:
    for text, blocks in group:
        yield _error(_prefill(engine, text, blocks), text, 0)
    longest = max(len(text.tokens) for text, _ in group)
    for place in range(1, longest):
        running = [(text, blocks) for text, blocks in group if place < len(text.tokens)]
        items = [
            StepItem(blocks, len(text.prompt) + place - 1, [text.tokens[place - 1]])
            for text, blocks in running
        ]
        engine.start(items)
        for row, (text, _) in zip(engine.wait(), running, strict=True):
            yield _error(row, text, place)


def _error(row: Logits, text: Continuation, place: int) -> float:
    """The greatest difference of the logits `[vocab]` that chose a token."""
    exact = np.array(text.top_logits[place], np.float32)
    error = float(np.abs(row[list(text.top_ids[place])] - exact).max())
    # One that the original did not think of must not be the likeliest.
    return float(np.maximum(error, row.max() - exact[0]))


def _prefill(engine: DecoderEngine, text: Continuation, blocks: range) -> Logits:
    size = engine.limits.max_step_tokens
    logits = np.empty((0, 0), np.float32)
    for start in range(0, len(text.prompt), size):
        chunk = text.prompt[start : start + size]
        is_last = start + size >= len(text.prompt)
        engine.start([StepItem(blocks, start, chunk, int(is_last))])
        logits = engine.wait()
    last: Logits = logits[0].copy()
    return last
