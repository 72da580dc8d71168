import gc
import weakref

import pytest

from enginehouse_builder.errors import SpecError
from enginehouse_builder.manifest import AttentionLayer, GenerateTask, GenerationDefaults
from enginehouse_builder.memory import (
    beside_weights,
    check_cache,
    check_memory,
    give_back_memory,
    prompt_bytes,
)


def test_a_model_that_does_not_fit_is_refused_with_the_figures() -> None:
    with pytest.raises(SpecError) as raised:
        check_memory(1_000_000_000, "org/large", 5_500_000_000)
    message = str(raised.value)
    assert "org/large has 1000 million weights" in message
    assert "about 5.8 GB (in fp32 4.0 GB" in message
    assert "5.5 GB of memory are free" in message
    assert "larger machine" in message


def test_a_model_that_just_fits_is_taken() -> None:
    check_memory(1_000_000_000, "org/large", 5_750_000_000)


def test_this_machine_takes_a_small_model() -> None:
    check_memory(1000, "org/small")


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_what_refers_to_itself_is_given_back() -> None:
    gc.disable()
    try:
        left = weakref.ref(_Cycle())
        assert left() is not None
        give_back_memory()
        assert left() is None
    finally:
        gc.enable()


def test_a_cache_that_does_not_fit_beside_the_weights_is_refused_with_the_figures() -> None:
    check_cache(1_000_000_000, 2_000_000_000, "org/large", 7_750_000_000)
    with pytest.raises(SpecError) as raised:
        check_cache(1_000_000_000, 2_000_000_000, "org/large", 7_740_000_000)
    message = str(raised.value)
    assert "org/large takes about 7.8 GB (2.0 GB of it for cached keys and values)" in message
    assert "lower --max-tokens" in message


def test_what_weights_leave_is_never_less_than_nothing() -> None:
    assert beside_weights(1_000_000_000, 10_750_000_000) == 5_000_000_000
    assert beside_weights(1_000_000_000, 1) == 0


def test_reading_a_prompt_takes_more_the_longer_it_is_and_most_without_a_cache() -> None:
    layer = AttentionLayer(num_heads=8, num_kv_heads=2, key_dim=16, value_dim=16, window=0)
    nothing = GenerationDefaults(None, None, None, None, None, None)
    task = GenerateTask(1000, (layer, layer), (), False, nothing)
    scores = 3 * 8 * 512 * 4096 * 4
    found = prompt_bytes(task, 4096, has_cache=True)
    assert scores < found < 1.2 * scores
    assert prompt_bytes(task, 4096, has_cache=False) > 7 * found
