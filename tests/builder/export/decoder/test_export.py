from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from enginehouse_server.engine.openvino import OpenVinoDecoder
from tests.conftest import Decoder
from tests.fixtures.decoders import (
    DECODERS,
    WIDE_DECODERS,
    DecoderExport,
    export_of,
    make_decoder,
)
from tests.fixtures.driving import answer_greedily

TOLERANCE = 1e-4  # of the largest logit: fp32, another order of sums, some layers
NUM_TOKENS = 24


def prompts_for(made: DecoderExport) -> Sequence[list[int]]:
    """Some shorter and some longer than a window of 8 and a block of 32."""
    lengths = (3, 40, 11)
    draw = np.random.default_rng(0)
    return [draw.integers(0, made.exported.generate.vocab_size, n).tolist() for n in lengths]


def assert_says_what_the_original_says(made: DecoderExport) -> None:
    with OpenVinoDecoder(made.spec()) as engine:
        answers = answer_greedily(engine, prompts_for(made), NUM_TOKENS, chunk=7)
    for answer in answers:
        whole = [*answer.prompt, *answer.tokens]
        original = made.original_logits(whole[:-1])[len(answer.prompt) - 1 :]
        assert original.std(0).max() > 0.05  # otherwise there is nothing to get wrong
        assert answer.tokens == original.argmax(-1).tolist()
        error = np.abs(np.array(answer.rows) - original).max()
        assert error < TOLERANCE * np.abs(original).max()


@pytest.mark.parametrize("family", DECODERS)
def test_export_says_what_the_original_says(family: str, decoder: Decoder) -> None:
    assert_says_what_the_original_says(decoder(family))


@pytest.mark.wide
@pytest.mark.parametrize("family", WIDE_DECODERS)
def test_wide_export_says_what_the_original_says(family: str, tmp_path: Path) -> None:
    made = export_of(make_decoder(family, tmp_path / "original"), tmp_path / "export")
    assert_says_what_the_original_says(made)
