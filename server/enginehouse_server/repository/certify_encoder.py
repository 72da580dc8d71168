"""How far an encoder is from the original on all that its reference file has."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from enginehouse_builder.manifest import Manifest, read_reference
from enginehouse_server.engine.base import EncoderEngine, Logits
from enginehouse_server.scheduler import EncoderWork, ShapeGrid
from enginehouse_server.text import TextInput, Tokenizer

from .certify import Deviation, read_reference_with
from .version import tokenizer_file

__all__ = ["measure_encoder"]


def measure_encoder(
    engine: EncoderEngine,
    grid: ShapeGrid,
    folder: Path,
    manifest: Manifest,
    check: Callable[[], None],
) -> Deviation:
    """Asks each input alone and beside others, in shapes that are served.

    Args:
        engine: Its first lane is used.
        grid: Inputs that are longer than it are left out.
        folder: Of the version.
        manifest: Of it.
        check: Called between batches; what it raises ends it.

    Raises:
        RepositoryError: The reference file or the tokenizer cannot be read.
        DeviceError: The runtime failed.
    """
    reference = read_reference_with(read_reference, folder, manifest)
    tokenizer = Tokenizer(folder / tokenizer_file(manifest), reference.max_tokens)
    texts = [TextInput(answer.text, answer.text_pair) for answer in reference.answers]
    works = [
        EncoderWork(0, i, encoding.ids, encoding.type_ids)
        for i, encoding in enumerate(tokenizer.encode(texts, truncate=True))
        if len(encoding.ids) <= grid.max_tokens
    ]
    worst = 0.0
    for batch in (*([work] for work in works), *_batches(works, grid)):
        check()
        exact = np.array([reference.answers[work.position].logits for work in batch], np.float32)
        # `max` of numpy keeps what is no number.
        worst = float(np.maximum(worst, np.abs(_ask(engine, batch, grid) - exact).max()))
    return Deviation(reference.reference, len(works), worst)


def _batches(works: Sequence[EncoderWork], grid: ShapeGrid) -> Iterator[list[EncoderWork]]:
    """Inputs of one bucket together, as many as it takes."""
    for bucket, sizes in enumerate(grid.batches):
        members = [work for work in works if grid.bucket_of(len(work.ids)) == bucket]
        for start in range(0, len(members), sizes[-1]):
            yield members[start : start + sizes[-1]]


def _ask(engine: EncoderEngine, batch: Sequence[EncoderWork], grid: ShapeGrid) -> Logits:
    bucket = max(grid.bucket_of(len(work.ids)) for work in batch)
    engine.lanes[0].start(batch, grid.shape_of(bucket, len(batch)))
    return engine.lanes[0].wait()
