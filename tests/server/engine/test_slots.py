"""How steps over slots are laid out, and how many slots there are."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_server.engine.decoder import (
    DecoderLimits,
    DecoderSpec,
    LayerGeometry,
    StepItem,
)
from enginehouse_server.engine.slots import coarse, fine, lay_out, slot_limits
from enginehouse_server.errors import PlanMismatchError

LIMITS = DecoderLimits(128, 8, 100, 64, 8, mixes=False, shares_blocks=False)
TOKEN_BYTES = 2 * 2 * (8 + 4) * 4


def _spec(cache_bytes: int, **changes: object) -> DecoderSpec:
    settings: dict[str, object] = {
        "model": Path("model.onnx"),
        "precision": "fp32",
        "cache_precision": "fp32",
        "layers": (LayerGeometry(4, 2, 8, 4, 0),) * 2,
        "vocab_size": 50,
        "max_tokens": 100,
        "max_step_tokens": 64,
        "max_sequences": 4,
        "cache_bytes": cache_bytes,
        "num_threads": 1,
        **changes,
    }
    return DecoderSpec(**settings)  # type: ignore[arg-type]


@given(st.integers(1, 5000))
def test_sizes_are_few_and_never_much_too_large(count: int) -> None:
    assert count <= coarse(count) <= max(count, count * 1.5)
    assert count <= fine(count) <= max(count, count * 1.125)
    assert coarse(coarse(count)) == coarse(count)
    assert fine(fine(count)) == fine(count)


def test_there_are_two_sizes_to_an_octave_or_eight() -> None:
    assert sorted({coarse(n) for n in range(65)}) == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert len({fine(n) for n in range(257, 513)}) == 8


def test_a_chunk_is_one_row_with_its_logits_in_place() -> None:
    step = lay_out([StepItem([3], 10, list(range(5, 22)), num_logits=3)], LIMITS)
    assert step.slots == [3]
    assert step.input_ids.shape == (1, 18)
    assert step.input_ids[0].tolist() == [*range(5, 22), 0]
    assert step.write_index.tolist() == [10]
    assert (step.num_new, step.num_logits) == (17, 3)
    assert step.logit_rows[:3].tolist() == [14, 15, 16]
    assert step.num_kept == 28


def test_tokens_of_several_are_rows_filled_up() -> None:
    items = [StepItem([slot], 20 + slot, [slot]) for slot in (4, 0, 2, 7, 1)]
    step = lay_out(items, LIMITS)
    assert step.slots == [4, 0, 2, 7, 1]
    assert step.input_ids[:, 0].tolist() == [4, 0, 2, 7, 1, 0]
    assert step.write_index.tolist() == [24, 20, 22, 27, 21, 0]
    assert step.logit_rows[: step.num_logits].tolist() == [0, 1, 2, 3, 4]


def test_items_go_to_the_rows_that_are_said_and_logits_keep_their_order() -> None:
    items = [StepItem([slot], 20 + slot, [slot], int(slot != 0)) for slot in (4, 0, 2)]
    step = lay_out(items, LIMITS, rows=[1, 2, 0])
    assert step.input_ids[:, 0].tolist() == [2, 4, 0]
    assert step.write_index.tolist() == [22, 24, 20]
    assert step.logit_rows.tolist() == [1, 0]
    chunk = lay_out([StepItem([3], 10, [7] * 17, 2)], LIMITS, rows=[0])
    assert chunk.input_ids.shape == (1, 17)
    assert chunk.logit_rows.tolist() == [15, 16]


@given(st.integers(0, 99), st.integers(1, 64))
def test_no_padding_lies_beyond_the_longest_sequence(num_cached: int, num_new: int) -> None:
    num_new = min(num_new, LIMITS.max_tokens - num_cached)
    step = lay_out([StepItem([0], num_cached, [1] * num_new, 0)], LIMITS)
    assert step.input_ids.shape[1] >= num_new
    assert step.num_kept <= LIMITS.max_tokens
    assert step.logit_rows.dtype == np.int64
    assert len(step.logit_rows) == 0


def test_a_cache_has_the_slots_that_fit_and_no_more_than_can_run() -> None:
    slot_bytes = TOKEN_BYTES * 128  # of 100 tokens, in steps of 32
    limits = slot_limits(_spec(3 * slot_bytes + 1))
    assert (limits.num_blocks, limits.block_size, limits.max_tokens) == (3, 128, 100)
    assert limits.max_sequences == 3
    assert not limits.mixes
    assert not limits.shares_blocks
    assert slot_limits(_spec(100 * slot_bytes)).num_blocks == 4


def test_a_cache_without_room_for_the_longest_has_one_shorter_slot() -> None:
    limits = slot_limits(_spec(TOKEN_BYTES * 70))
    assert (limits.num_blocks, limits.block_size, limits.max_tokens) == (1, 64, 64)
    with pytest.raises(PlanMismatchError, match=f"takes {TOKEN_BYTES * 32}: allow more"):
        slot_limits(_spec(TOKEN_BYTES * 31))


@pytest.mark.parametrize("precision", ["u8", "bf16"])
def test_another_precision_of_the_cache_is_refused(precision: str) -> None:
    with pytest.raises(PlanMismatchError, match="CACHE_PRECISION=fp32"):
        slot_limits(_spec(1 << 20, cache_precision=precision))
