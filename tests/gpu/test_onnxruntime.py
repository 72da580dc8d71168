"""ONNX Runtime's provider for CUDA, against transformers."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from enginehouse_server.engine.base import EncoderSpec, Precision, Shape
from enginehouse_server.engine.create import describe
from enginehouse_server.engine.decoder import DecoderEngine, StepItem
from enginehouse_server.engine.graph import NUM_BEST, to_half
from enginehouse_server.engine.onnxruntime import OnnxRuntimeDecoder, OnnxRuntimeEncoder
from tests.conftest import Checkpoint, Decoder
from tests.fixtures.decoder_exports import DecoderExport
from tests.fixtures.driving import check_reduction, reduce_step, run_step
from tests.fixtures.sums import Row

pytestmark = pytest.mark.gpu("onnxruntime")

# Absolute, of logits around 1: numbers of 24, 11, 8 and 11 bits.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 0.1, "fp16": 2e-2}
VOCAB = 800
SEQUENCES = [
    np.random.default_rng(i).integers(0, VOCAB, n).tolist() for i, n in enumerate((70, 31, 90, 33))
]


def test_it_says_that_it_computes_on_the_gpu() -> None:
    found = describe("onnxruntime")
    assert found.provider == "CUDAExecutionProvider"
    assert found.has_fp16


@pytest.fixture(scope="module")
def classifier(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The canonical graph of a tiny BERT."""
    from tests.fixtures.gpu import export_classifier

    return export_classifier(checkpoint("bert"), tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_classifier_says_what_transformers_says(
    precision: Precision, classifier: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from tests.fixtures.gpu import original_logits

    file = classifier
    if precision in ("bf16", "fp16"):
        file = tmp_path / "model.onnx"
        to_half(classifier, file, precision)
    spec = EncoderSpec(
        model=file,
        precision=precision,
        inputs=("input_ids", "attention_mask", "token_type_ids"),
        pad_id=0,
        max_batch_tokens=512,
        num_shapes=4,
        num_threads=2,
        num_lanes=2,
    )
    draw = np.random.default_rng(1)
    with closing(OnnxRuntimeEncoder(spec)) as engine:
        assert engine.device == describe("onnxruntime").name
        assert engine.has_graphs
        # Each shape several times, in both lanes: it is computed, captured, and replayed.
        for turn in range(4):
            for shape in (Shape(1, 32), Shape(4, 32), Shape(8, 48)):
                rows = [
                    Row(draw.integers(5, 90, draw.integers(3, 30)).tolist())
                    for _ in range(max(1, shape.batch - 1))
                ]
                lane = engine.lanes[turn % len(engine.lanes)]
                lane.start(rows, shape)
                np.testing.assert_allclose(
                    lane.wait(),
                    original_logits(checkpoint("bert"), [r.ids for r in rows]),
                    atol=TOLERANCES[precision],
                )


class Original:
    """An engine, and what transformers says after each token of the sequences."""

    def __init__(
        self, engine: DecoderEngine, logits: list[NDArray[np.float32]], tolerance: float
    ) -> None:
        self.engine, self._logits, self._tolerance = engine, logits, tolerance

    def check(self, found: NDArray[np.float32], places: Sequence[tuple[int, int]]) -> None:
        wanted = [self._logits[sequence][place] for sequence, place in places]
        np.testing.assert_allclose(found, np.array(wanted), atol=self._tolerance)

    def prefill(self, sequence: int, slot: int, end: int, chunk: int = 96) -> None:
        for start in range(0, end, chunk):
            tokens = SEQUENCES[sequence][start : min(end, start + chunk)]
            found = run_step(self.engine, StepItem([slot], start, tokens, len(tokens)))
            self.check(found, [(sequence, start + i) for i in range(len(tokens))])


def _tolerance(made: DecoderExport, exact: list[NDArray[np.float32]], precision: str) -> float:
    """In half precision, twice the most that transformers itself is off in it."""
    if precision == "fp32":
        return TOLERANCES["fp32"]
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    pairs = zip(SEQUENCES, exact, strict=True)
    return 2 * max(float(np.abs(made.original_logits(t, dtype) - e).max()) for t, e in pairs)


# In fp32 the graph's own operators attend, in half precision GroupQueryAttention does.
@pytest.fixture(
    scope="module",
    params=[(f, p) for p in ("fp32", "fp16", "bf16") for f in ("llama", "gemma2", "gpt2")],
    ids=str,
)
def original(
    request: pytest.FixtureRequest, decoder: Decoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Original]:
    family, precision = request.param
    made = decoder(family)
    settings: dict[str, object] = {}
    if precision != "fp32":
        file = tmp_path_factory.mktemp("half") / "model.onnx"
        to_half(made.folder / "model.onnx", file, precision)
        settings = {"model": file, "cache_precision": precision, "precision": precision}
    spec = made.spec(attention="slots", max_step_tokens=96, **settings)
    with closing(OnnxRuntimeDecoder(spec)) as engine:
        logits = [made.original_logits(tokens) for tokens in SEQUENCES]
        assert engine.has_graphs == (precision != "fp32")
        yield Original(engine, logits, _tolerance(made, logits, precision))


def test_a_prompt_in_any_chunks_gets_the_original_s_logits(original: Original) -> None:
    for chunk in (96, 33, 7):
        original.prefill(2, slot=1, end=90, chunk=chunk)


def test_sequences_of_any_length_decode_together_in_any_slots(original: Original) -> None:
    """Each number of sequences often enough to be captured and replayed, with prompts between."""
    lengths, slots = {0: 40, 1: 3, 2: 60, 3: 12}, {0: 2, 1: 0, 2: 3, 3: 1}
    for sequence, length in lengths.items():
        original.prefill(sequence, slots[sequence], length)
    for step in range(20):
        chosen = [(step + i) % 4 for i in range(1 + step % 4)]
        items = [
            StepItem([slots[s]], lengths[s], SEQUENCES[s][lengths[s] : lengths[s] + 1])
            for s in chosen
        ]
        original.check(run_step(original.engine, *items), [(s, lengths[s]) for s in chosen])
        for s in chosen:
            lengths[s] += lengths[s] + 1 < len(SEQUENCES[s])


def test_copied_and_cleared_slots_are_what_they_should_be(original: Original) -> None:
    original.prefill(0, slot=1, end=40)
    original.engine.copy_block(1, 3)
    original.prefill(2, slot=1, end=60)
    found = run_step(original.engine, StepItem([3], 40, SEQUENCES[0][40:70], 30))
    original.check(found, [(0, place) for place in range(40, 70)])
    original.engine.clear_blocks([1, 3])
    one = run_step(original.engine, StepItem([1], 9, SEQUENCES[0][9:10]))
    np.testing.assert_allclose(
        run_step(original.engine, StepItem([3], 9, SEQUENCES[0][9:10])), one, atol=1e-3
    )


def test_logits_are_reduced_to_their_best_in_steps_of_every_kind(original: Original) -> None:
    for slot in range(4):
        item = StepItem([slot], 0, SEQUENCES[slot][:20], 3, is_reduced=True)
        check_reduction(reduce_step(original.engine, item), NUM_BEST)
    lengths = [20] * 4
    for step in range(12):
        slots = range(1 + step % 4)
        items = [
            StepItem([s], lengths[s], SEQUENCES[s][lengths[s] : lengths[s] + 1], 1, s != 1)
            for s in slots
        ]
        found = reduce_step(original.engine, *items)
        original.check(found.fetch(0, len(items)), [(s, lengths[s]) for s in slots])
        check_reduction(found, NUM_BEST)
        for slot in slots:
            lengths[slot] += lengths[slot] + 1 < len(SEQUENCES[slot])
