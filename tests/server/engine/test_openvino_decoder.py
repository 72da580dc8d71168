from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.create import create_decoder
from enginehouse_server.engine.decoder import DecoderEngine, StepItem
from enginehouse_server.engine.openvino import OpenVinoDecoder
from enginehouse_server.engine.openvino.device import describe_device
from enginehouse_server.errors import PlanMismatchError
from tests.conftest import Decoder
from tests.fixtures.driving import run_step

TOLERANCE = 1e-4  # absolute; logits are around 1
BLOCK = 32
# Two whole blocks and a bit, of a vocabulary of 800.
PROMPT: Sequence[int] = np.random.default_rng(1).integers(0, 800, 2 * BLOCK + 9).tolist()


@pytest.fixture(scope="module", params=["llama", "mistral"])  # without a window, and with one of 8
def engine(request: pytest.FixtureRequest, decoder: Decoder) -> Iterator[DecoderEngine]:
    with OpenVinoDecoder(decoder(request.param).spec(max_step_tokens=96)) as made:
        yield made


def test_logits_come_for_as_many_last_tokens_as_are_wanted(engine: DecoderEngine) -> None:
    whole = run_step(engine, StepItem([0, 1, 2], 0, PROMPT, num_logits=len(PROMPT)))
    assert whole.shape == (len(PROMPT), 800)
    assert whole.dtype == np.float32
    mixed = run_step(
        engine,
        StepItem([3, 4], 0, PROMPT[:40], num_logits=3),
        StepItem([5], 0, PROMPT[:20], num_logits=0),
        StepItem([6], 0, PROMPT[:5]),
    )
    np.testing.assert_allclose(mixed, whole[[37, 38, 39, 4]], atol=TOLERANCE)


def test_a_step_may_want_no_logits_at_all(engine: DecoderEngine) -> None:
    expected = run_step(engine, StepItem([3, 4, 5], 0, PROMPT))
    first, rest = PROMPT[:50], PROMPT[50:]
    assert run_step(engine, StepItem([0, 1], 0, first, num_logits=0)).shape == (0, 800)
    found = run_step(engine, StepItem([0, 1, 2], len(first), rest))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_prompt_in_any_chunks_gets_the_same_logits(engine: DecoderEngine) -> None:
    whole = run_step(engine, StepItem([0, 1, 2], 0, PROMPT, num_logits=len(PROMPT)))
    done, rows = 0, []
    for size in (1, 1, 30, 2, 33, 6):
        tokens = PROMPT[done : done + size]
        rows.append(run_step(engine, StepItem([5, 3, 4], done, tokens, num_logits=size)))
        done += size
    assert done == len(PROMPT)
    np.testing.assert_allclose(np.concatenate(rows), whole, atol=TOLERANCE)


def test_sequences_may_share_the_full_blocks_of_a_prefix(engine: DecoderEngine) -> None:
    other = [7, 8, 9]
    shared = 2 * BLOCK
    alone = run_step(engine, StepItem([6, 7, 5], 0, [*PROMPT[:shared], *other], num_logits=3))
    run_step(engine, StepItem([0, 1], 0, PROMPT[:shared], num_logits=0))
    found = run_step(
        engine,
        StepItem([0, 1, 2], shared, PROMPT[shared:]),
        StepItem([0, 1, 3], shared, other, num_logits=3),
    )
    np.testing.assert_allclose(found[1:], alone, atol=TOLERANCE)


@pytest.mark.parametrize("cache_precision", ["fp32", "u8"])
def test_a_copied_block_holds_what_its_original_holds(
    cache_precision: str, decoder: Decoder
) -> None:
    spec = decoder("llama").spec(cache_precision=cache_precision)
    with OpenVinoDecoder(spec) as engine:
        run_step(engine, StepItem([0, 1], 0, PROMPT[:50], num_logits=0))
        expected = run_step(engine, StepItem([0, 1], 50, PROMPT[50:51]))
        run_step(engine, StepItem([0, 1], 0, PROMPT[:50], num_logits=0))
        engine.copy_block(0, 4)
        engine.copy_block(1, 3)
        run_step(engine, StepItem([0, 1], 0, PROMPT[9:59], num_logits=0))
        found = run_step(engine, StepItem([4, 3], 50, PROMPT[50:51]))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("cache_precision", ["fp32", "u8"])
def test_a_cleared_block_is_as_one_that_was_never_written(
    cache_precision: str, decoder: Decoder
) -> None:
    spec = decoder("llama").spec(cache_precision=cache_precision)
    with OpenVinoDecoder(spec) as engine:
        run_step(engine, StepItem([0, 1], 0, PROMPT[:50], num_logits=0))
        engine.clear_blocks([0, 1])
        found = run_step(engine, StepItem([0, 1], 50, PROMPT[50:51]))
        expected = run_step(engine, StepItem([4, 3], 50, PROMPT[50:51]))
    np.testing.assert_array_equal(found, expected)


def test_a_narrower_cache_is_smaller_and_close(decoder: Decoder) -> None:
    made = decoder("llama")
    item = StepItem([0, 1], 0, PROMPT[:60], num_logits=60)
    with OpenVinoDecoder(made.spec(cache_bytes=1 << 14)) as exact:
        expected = run_step(exact, item)
        num_blocks = exact.limits.num_blocks
    with OpenVinoDecoder(made.spec(cache_bytes=1 << 14, cache_precision="u8")) as narrow:
        found = run_step(narrow, item)
        assert narrow.limits.num_blocks > num_blocks
    assert 0 < _error(found, expected) < 0.05


@pytest.mark.skipif(not describe_device().has_bf16, reason="this processor has no bf16")
def test_bf16_is_close(decoder: Decoder) -> None:
    made = decoder("llama")
    item = StepItem([0, 1], 0, PROMPT[:60], num_logits=60)
    with OpenVinoDecoder(made.spec()) as exact:
        expected = run_step(exact, item)
    with OpenVinoDecoder(made.spec(precision="bf16", cache_precision="bf16")) as narrow:
        found = run_step(narrow, item)
    assert 0 < _error(found, expected) < 0.1


def test_a_cache_of_another_precision_than_the_arithmetic_is_refused(decoder: Decoder) -> None:
    with pytest.raises(PlanMismatchError, match="caches it in that or in u8, not in bf16"):
        OpenVinoDecoder(decoder("llama").spec(precision="int8", cache_precision="bf16"))


def _error(found: Logits, expected: Logits) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_the_cache_is_as_large_as_allowed_and_no_larger_than_needed(decoder: Decoder) -> None:
    made = decoder("llama")
    # Two layers, keys and values, two heads of 8 fp32 numbers a token.
    block_bytes = 2 * 2 * 2 * 8 * 4 * BLOCK
    with OpenVinoDecoder(made.spec(cache_bytes=2 * block_bytes + 1)) as engine:
        assert engine.limits.num_blocks == 2
        assert engine.limits.max_tokens == 2 * BLOCK
    with OpenVinoDecoder(made.spec(max_sequences=2, max_tokens=BLOCK + 1)) as engine:
        assert engine.limits.num_blocks == 2 * 2
        assert engine.limits.max_tokens == BLOCK + 1
    with pytest.raises(PlanMismatchError, match=f"takes {block_bytes}: allow more"):
        OpenVinoDecoder(made.spec(cache_bytes=block_bytes - 1))


def test_a_manifest_of_another_model_is_refused(decoder: Decoder) -> None:
    spec = decoder("llama").spec()
    with pytest.raises(PlanMismatchError, match="build the model again"):
        OpenVinoDecoder(replace(spec, layers=spec.layers + spec.layers[:1]))
    with pytest.raises(PlanMismatchError, match="more than 1 attentions"):
        OpenVinoDecoder(replace(spec, layers=spec.layers[:1]))


def test_the_operator_of_another_openvino_is_refused(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino.op

    def of_another_release(inputs: Sequence[object]) -> object:
        raise RuntimeError("Check 'get_input_size() == 31' failed")

    monkeypatch.setattr(openvino.op, "_PagedAttentionExtension", of_another_release)
    with pytest.raises(PlanMismatchError, match=r"pip install 'openvino==2026\.4\.\*'"):
        OpenVinoDecoder(decoder("llama").spec())


def test_a_backend_is_made_by_name(decoder: Decoder) -> None:
    spec = decoder("llama").spec()
    engine = create_decoder("openvino", spec)
    assert engine.backend == "openvino"
    assert engine.limits.block_size == BLOCK
    assert engine.limits.mixes
    assert engine.limits.shares_blocks
    engine.close()
    with pytest.raises(PlanMismatchError, match="no backend 'abacus'"):
        create_decoder("abacus", spec)
