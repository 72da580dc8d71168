from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from enginehouse_builder.export.decoder.meaning import attend as attend_in_torch
from enginehouse_builder.export.decoder.operators import NO_SINK
from enginehouse_server.engine.decoder import LayerGeometry
from tests.fixtures.attention import (
    VOCABULARY,
    Floats,
    Tables,
    attend,
    make_tables,
    write_attention,
)

TOLERANCE = 1e-5  # absolute; values are around 1
CAPACITY = 24
GEOMETRIES = st.builds(
    lambda kv_heads, group, *others: LayerGeometry(kv_heads * group, kv_heads, *others),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([4, 8]),
    st.sampled_from([4, 8]),
    st.sampled_from([0, 1, 5]),
    st.sampled_from([0.0, 0.7, 30.0]),
    st.booleans(),
    st.booleans(),
)
Texts = Sequence[NDArray[np.int64]]


def run_bodies(
    folder: Path, geometry: LayerGeometry, tables: Tables, texts: Texts, num_new: int
) -> Floats:
    """What the last tokens of each text get, `[texts, num_new, width]`, by ONNX Runtime.

    Those before them are in the caches, which hold something else after their end.
    """
    file = folder / "model.onnx"
    write_attention(geometry, tables, file)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns of updates that are not in place
    session = ort.InferenceSession(file, options)
    lengths = np.array([len(text) for text in texts], np.int32)
    feeds: dict[str, NDArray[np.generic]] = {
        "input_ids": np.stack([text[-num_new:] for text in texts]),
        "write_index": lengths - np.int32(num_new),
        "kv_length": lengths,
        "logit_rows": np.arange(len(texts) * num_new),
    }
    for name in ("key", "value"):
        table: Floats = getattr(tables, name)
        cache = np.full((len(texts), table.shape[1], CAPACITY, table.shape[2]), 1e3, np.float32)
        for row, text in zip(cache, texts, strict=True):
            row[:, : len(text) - num_new] = table[text[:-num_new]].swapaxes(0, 1)
        feeds[f"past_{name}.0"] = cache
    logits = np.asarray(session.run(["logits"], feeds)[0], np.float32)
    return logits.reshape(len(texts), num_new, -1)


def texts_of(lengths: Sequence[int]) -> Texts:
    draw = np.random.default_rng(0)
    return [draw.integers(0, VOCABULARY, length) for length in lengths]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attention")


@settings(deadline=None, max_examples=80)
@given(
    geometry=GEOMETRIES,
    lengths=st.lists(st.integers(4, CAPACITY), min_size=1, max_size=3),
    num_new=st.integers(1, 4),
)
def test_the_body_of_attention_is_what_the_formula_says(
    folder: Path, geometry: LayerGeometry, lengths: list[int], num_new: int
) -> None:
    tables, texts = make_tables(geometry), texts_of(lengths)
    found = run_bodies(folder, geometry, tables, texts, num_new)
    expected = [attend(text, geometry, tables)[-num_new:] for text in texts]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@settings(deadline=None, max_examples=80)
@given(geometry=GEOMETRIES, length=st.integers(4, CAPACITY), num_new=st.integers(1, 4))
def test_attention_in_torch_is_what_the_formula_says(
    geometry: LayerGeometry, length: int, num_new: int
) -> None:
    tables, (text,) = make_tables(geometry), texts_of([length])
    query, key, value = (
        torch.from_numpy(table[text]).transpose(0, 1)[None] for table in tables[:3]
    )
    found = attend_in_torch(
        query[:, :, -num_new:],
        key,
        value,
        window=geometry.window,
        softcap=geometry.softcap,
        slopes=torch.from_numpy(tables.slopes) if geometry.has_slopes else None,
        sinks=torch.from_numpy(tables.sinks) if geometry.has_sinks else None,
    )
    rows = found[0].transpose(0, 1).reshape(num_new, -1)
    expected = attend(text, geometry, tables)[-num_new:]
    np.testing.assert_allclose(rows, expected, atol=TOLERANCE)


def test_a_layer_may_have_inputs_that_change_nothing(tmp_path: Path) -> None:
    plain = LayerGeometry(4, 2, 8, 8, 5)
    both = plain._replace(has_slopes=True, has_sinks=True)
    tables = make_tables(plain)
    neutral = tables._replace(slopes=np.zeros(4, "f4"), sinks=np.full(4, NO_SINK, "f4"))
    texts = texts_of([17, 9])
    found = run_bodies(tmp_path, both, neutral, texts, 3)
    expected = run_bodies(tmp_path, plain, tables, texts, 3)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("change", [{"softcap": 0.7}, {"has_slopes": True}, {"has_sinks": True}])
def test_what_a_layer_does_more_shows_in_these_tests(change: dict[str, object]) -> None:
    plain = LayerGeometry(4, 2, 8, 8, 5)
    changed = plain._replace(**change)  # type: ignore[arg-type]
    tables, (text,) = make_tables(plain), texts_of([20])
    assert np.abs(attend(text, changed, tables) - attend(text, plain, tables)).max() > 0.1
