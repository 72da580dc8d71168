from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_builder.buckets import default_buckets
from enginehouse_builder.manifest import ClassifyTask, Limits

TASK = ClassifyTask(("a", "b"), "single_label", False, "invariant", 0)
EQUAL = replace(TASK, padding="equal_length")
LIMITS = st.builds(
    lambda tokens, batch, more: Limits(tokens, batch, tokens + more),
    st.integers(1, 2048),
    st.integers(1, 512),
    st.integers(0, 4096),
)


@pytest.mark.parametrize("task", [TASK, EQUAL])
@given(limits=LIMITS)
def test_every_length_has_a_bucket_and_no_shape_exceeds_a_limit(
    task: ClassifyTask, limits: Limits
) -> None:
    buckets = default_buckets(limits, task)
    lengths = [b.length for b in buckets]
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == limits.max_tokens
    for bucket in buckets:
        assert bucket.batches[0] == 1
        assert list(bucket.batches) == sorted(set(bucket.batches))
        assert bucket.batches[-1] <= limits.max_batch
        assert bucket.batches[-1] * bucket.length <= limits.max_batch_tokens


@pytest.mark.parametrize("max_batch", [48, 64, 65, 128, 1000])
def test_as_many_rows_as_the_limits_allow_share_a_batch(max_batch: int) -> None:
    [*_, longest] = default_buckets(Limits(16, max_batch, 1 << 20), TASK)
    assert longest.batches[-1] == max_batch


def test_a_model_that_padding_changes_has_a_bucket_for_each_length() -> None:
    buckets = default_buckets(Limits(96, 32, 512), EQUAL)
    assert [b.length for b in buckets] == list(range(1, 97))


def test_the_grid_stays_small_enough_to_warm_up() -> None:
    assert sum(len(b.batches) for b in default_buckets(Limits(512, 32, 512), TASK)) < 500
    assert sum(len(b.batches) for b in default_buckets(Limits(512, 32, 512), EQUAL)) < 700
