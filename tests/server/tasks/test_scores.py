import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from enginehouse_server.tasks.scores import best_labels, default_activation, scores

ROWS = arrays(np.float32, (3, 5), elements=st.floats(-1e4, 1e4, width=32))


@given(ROWS)
def test_softmax_sums_to_one_and_keeps_the_order(logits: np.ndarray) -> None:
    found = scores(logits, "softmax")
    np.testing.assert_allclose(found.sum(axis=-1), 1)
    assert np.isfinite(found).all()
    best = np.take_along_axis(found, logits.argmax(-1, keepdims=True), -1)
    assert (best[:, 0] == found.max(-1)).all()


@given(ROWS)
def test_sigmoid_is_between_zero_and_one(logits: np.ndarray) -> None:
    found = scores(logits, "sigmoid")
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(scores(-logits, "sigmoid"), 1 - found, atol=1e-12)


def test_known_values() -> None:
    logits = np.array([[0.0, np.log(3.0)]], np.float32)
    np.testing.assert_allclose(scores(logits, "softmax"), [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(scores(logits, "sigmoid"), [[0.5, 0.75]], rtol=1e-6)
    np.testing.assert_array_equal(scores(logits, "none"), logits)


@pytest.mark.parametrize(("top_k", "expected"), [(1, [1]), (2, [1, 0]), (9, [1, 0, 2])])
def test_best_labels_come_first_and_ties_by_index(top_k: int, expected: list[int]) -> None:
    assert [b.label for b in best_labels(np.array([0.2, 0.6, 0.2]), top_k)] == expected


def test_default_activations_are_those_of_the_problem() -> None:
    found = [default_activation(p) for p in ("single_label", "multi_label", "regression")]
    assert found == ["softmax", "sigmoid", "none"]
