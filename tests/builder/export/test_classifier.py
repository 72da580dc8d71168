from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.reference import Reference
from enginehouse_builder.resolve import resolve
from enginehouse_server.engine.base import EncoderEngine, EncoderSpec, Shape
from enginehouse_server.engine.create import BACKENDS, create_encoder
from enginehouse_server.text import Encoding, TextInput, Tokenizer
from tests.builder.export.conftest import Export, Exporting, export_of
from tests.fixtures.checkpoints import FAMILIES, WIDE_FAMILIES

TOLERANCE = 1e-4  # of the largest logit: fp32, another order of sums, many layers
_SENTENCE = (
    "The quick brown fox jumps over the lazy dog while nobody watches. Привет, мир! 今天天气"
)
_TEXTS = ("Hello world", "a", "Shares fell 12.5% on Monday", _SENTENCE, _SENTENCE * 6)
_PAIRS = (("Hello world", "the lazy dog"), ("a", _SENTENCE * 6))


class Answers(NamedTuple):
    """Logits by whom and how they were asked for, `[texts, labels]`."""

    original: NDArray[np.float32]
    alone: NDArray[np.float32]
    padded: NDArray[np.float32]

    def error(self, found: NDArray[np.float32]) -> float:
        return float(np.abs(found - self.original).max() / np.abs(self.original).max())


def _answers(made: Export, texts: Sequence[tuple[str, str | None]], backend: str) -> Answers:
    reference = Reference(resolve(made.spec, lambda _: None), made.spec)
    original = reference.logits(texts, made.exported.max_tokens)
    file = made.folder / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer(file, made.exported.max_tokens)
    rows = tokenizer.encode([TextInput(*text) for text in texts], truncate=True)
    engine = create_encoder(
        backend,
        EncoderSpec(
            model=made.folder / "model.onnx",
            precision="fp32",
            inputs=tuple(tensor.name for tensor in made.exported.inputs),
            pad_id=made.exported.pad_id,
            max_batch_tokens=16 * made.exported.max_tokens,
            num_shapes=8,
            num_threads=1,
        ),
    )
    with closing(engine):
        alone = [_run(engine, [row], Shape(1, len(row.ids)))[0] for row in rows]
        longest = max(len(row.ids) for row in rows)
        padded = _run(engine, rows, Shape(len(rows) + 1, longest))
    return Answers(original, np.array(alone), padded)


def _run(engine: EncoderEngine, rows: Sequence[Encoding], shape: Shape) -> NDArray[np.float32]:
    (lane,) = engine.lanes
    lane.start(rows, shape)
    return lane.wait()


def _inputs(made: Export) -> list[tuple[str, str | None]]:
    pairs = _PAIRS if made.exported.classify.accepts_pairs else ()
    return [*((text, None) for text in _TEXTS), *pairs]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_export_says_what_the_original_says_alone_and_padded(
    family: str, backend: str, export: Exporting
) -> None:
    made = export(family)
    answers = _answers(made, _inputs(made), backend)
    assert answers.original.std(0).max() > 0.05  # otherwise there is nothing to get wrong
    assert answers.error(answers.alone) < TOLERANCE
    assert answers.error(answers.padded) < TOLERANCE


REFUSED = {
    "fnet": "Fourier transform",
    "funnel": "fixes the number or the length",
    "jamba": "linear attention or Mamba",
    "longformer": "takes one way or another",
    "reformer": "takes another way outside of lengths",
    "xlnet": "aten.sub",
    "deepseek_v2": "complex numbers",
    "qwen3_next": "linear attention",
}
# transformers itself answers otherwise when these are padded.
VARIES_WITH_PADDING = ("convbert", "nystromformer", "yoso")
# Their answers here hardly depend on the text: without boxes, tags or CUDA kernels.
DULL = ("mra", "markuplm")


@pytest.mark.wide
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", [f for f in WIDE_FAMILIES if f not in REFUSED])
def test_wide_export_says_what_the_original_says(
    family: str, backend: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    made = export_of(checkpoint(family), tmp_path)
    answers = _answers(made, _inputs(made), backend)
    assert answers.original.std(0).max() > 0.05 or family in DULL
    assert answers.error(answers.alone) < TOLERANCE
    if family not in VARIES_WITH_PADDING:
        assert answers.error(answers.padded) < TOLERANCE


@pytest.mark.wide
@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_converted_is_refused_with_its_reason(
    family: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"cannot be converted: .*{REFUSED[family]}"):
        export_of(checkpoint(family), tmp_path)
