"""OpenVINO's paged attention against the formula, in every kind of step."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from enginehouse_server.engine.decoder import DecoderSpec, LayerGeometry, StepItem
from enginehouse_server.engine.openvino import OpenVinoDecoder
from enginehouse_server.engine.openvino.paging import obstacle_to_paging
from enginehouse_server.errors import PlanMismatchError
from tests.fixtures.attention import VOCABULARY, attend, make_tables, write_attention
from tests.fixtures.driving import run_step

TOLERANCE = 2e-5  # absolute, in fp32; values are around 1
WINDOW = 40  # more than a block of 32
SHAPES = ((4, 2, 16, 16), (6, 1, 32, 16), (3, 3, 8, 24))
KINDS = {
    "plain": {},
    "window": {"window": WINDOW},
    "slopes": {"has_slopes": True},
    "sinks": {"has_sinks": True},
    "sinks in a window": {"has_sinks": True, "window": WINDOW},
    "slopes and sinks": {"has_slopes": True, "has_sinks": True},
}


class Text:
    """A sequence, its blocks, and how many of its tokens were computed."""

    def __init__(self, length: int, blocks: list[int]) -> None:
        self.tokens = np.random.default_rng(length).integers(0, VOCABULARY, length)
        self.blocks, self.done = blocks, 0

    def take(self, count: int) -> StepItem:
        """The next tokens, the logits of all of which are wanted."""
        tokens = self.tokens[self.done : self.done + count].tolist()
        item = StepItem(self.blocks, self.done, tokens, num_logits=count)
        self.done += count
        return item


def spec_of(geometry: LayerGeometry, model: Path, cache_precision: str = "fp32") -> DecoderSpec:
    return DecoderSpec(
        model=model,
        precision="fp32",
        cache_precision=cache_precision,  # type: ignore[arg-type]
        layers=(geometry,),
        vocab_size=geometry.num_heads * geometry.value_dim,
        max_tokens=160,
        max_step_tokens=160,
        max_sequences=3,
        cache_bytes=1 << 22,
        num_threads=1,
    )


def steps_of(long: Text, middle: Text, short: Text) -> Iterator[list[StepItem]]:
    yield [long.take(60), middle.take(33), short.take(1)]  # prompts of several sequences
    yield [long.take(50), middle.take(1), short.take(3)]  # chunks beside a token of another
    for _ in range(4):
        yield [text.take(1) for text in (short, long, middle)]  # a token of each
    yield [long.take(1)]
    yield [middle.take(28)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_paged_attention_is_what_the_formula_says(
    kind: str, shape: tuple[int, int, int, int], tmp_path: Path
) -> None:
    geometry = LayerGeometry(*shape, window=0)._replace(**KINDS[kind])  # type: ignore[arg-type]
    tables = make_tables(geometry)
    write_attention(geometry, tables, tmp_path / "model.onnx")
    texts = (Text(120, [4, 2, 0, 1]), Text(70, [7, 5, 6]), Text(9, [3]))
    expected = {tuple(t.blocks): attend(t.tokens, geometry, tables) for t in texts}
    with OpenVinoDecoder(spec_of(geometry, tmp_path / "model.onnx")) as engine:
        for items in steps_of(*texts):
            wanted = [
                expected[tuple(i.blocks)][i.num_cached : i.num_cached + i.num_logits] for i in items
            ]
            found = run_step(engine, *items)
            np.testing.assert_allclose(found, np.concatenate(wanted), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"softcap": 2.0}, "soft-caps its attention"),
        ({"has_slopes": True, "window": 8}, r"linear bias \(ALiBi\) within a window"),
    ],
)
def test_what_paged_attention_cannot_express_is_refused(
    change: dict[str, object], reason: str, tmp_path: Path
) -> None:
    plain = LayerGeometry(4, 2, 8, 8, window=0)
    geometry = plain._replace(**change)  # type: ignore[arg-type]
    assert obstacle_to_paging([plain, plain]) is None
    assert obstacle_to_paging([plain, geometry]) is not None
    write_attention(geometry, make_tables(geometry), tmp_path / "model.onnx")
    with pytest.raises(PlanMismatchError, match=reason):
        OpenVinoDecoder(spec_of(geometry, tmp_path / "model.onnx"))
