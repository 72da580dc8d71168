import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_server.sampling.largest import largest


@given(st.integers(1, 3000), st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_the_largest_are_those_of_a_stable_sort(n: int, k: int, num_levels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    row = random.integers(0, num_levels, n).astype(np.float32)  # many ties
    row[random.random(n) < 0.2] = -np.inf
    expected = [i for i in np.argsort(-row, kind="stable") if row[i] > -np.inf][:k]
    assert largest(row, k).tolist() == expected


def test_a_row_of_equal_values_gives_the_lowest_ids() -> None:
    assert largest(np.zeros(100_000, np.float32), 5).tolist() == [0, 1, 2, 3, 4]
