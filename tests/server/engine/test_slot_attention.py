"""The composed attention against numpy, in all that a layer can have."""

from typing import NamedTuple

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest
from numpy.typing import NDArray

from enginehouse_server.engine.decoder import LayerGeometry
from enginehouse_server.engine.openvino.slot_attention import (
    PAGE,
    Bias,
    Place,
    attend,
    distances_of,
    gathered,
    is_seen,
)

HEADS, KV_HEADS, KEY_DIM, VALUE_DIM = 6, 2, 8, 4
NUM_PAGES = 3  # that a row sees, of the 8 that there are
Floats = NDArray[np.float32]


class Case(NamedTuple):
    """What a layer has."""

    window: int = 0
    softcap: float = 0.0
    has_slopes: bool = False
    has_sinks: bool = False


CASES = {
    "plain": Case(),
    "window": Case(window=9),
    "softcap": Case(softcap=1.5),
    "slopes": Case(has_slopes=True),
    "sinks": Case(has_sinks=True),
    "all": Case(40, 2.0, True, True),
}


def _floats(*shape: int) -> Floats:
    seed = np.random.default_rng(sum(shape))
    return seed.normal(0, 1.5, shape).astype(np.float32)


def _expected(
    case: Case, query: Floats, key: Floats, value: Floats, slopes: Floats, sinks: Floats
) -> Floats:
    """Of one row: `query [heads, length, dim]`, the last of the positions of `key` and `value`."""
    length, total = query.shape[1], key.shape[1]
    out = np.zeros((HEADS, length, VALUE_DIM), np.float64)
    for head in range(HEADS):
        of = head // (HEADS // KV_HEADS)
        for i in range(length):
            at = total - length + i
            first = max(0, at - case.window + 1) if case.window else 0
            scores = key[of, first : at + 1].astype(np.float64) @ query[head, i]
            if case.softcap:
                scores = case.softcap * np.tanh(scores / case.softcap)
            if case.has_slopes:
                scores += slopes[head] * (np.arange(first, at + 1) - at)
            powers = np.exp(scores)
            rest = np.exp(float(sinks[head])) if case.has_sinks else 0.0
            out[head, i] = powers @ value[of, first : at + 1] / (powers.sum() + rest)
    return out.astype(np.float32)


def _compiled(case: Case) -> ov.CompiledModel:
    def floats(name: str, *shape: int) -> ov.Output:
        return _parameter(name, ov.Type.f32, shape)

    query, key, value = (
        floats("query", -1, HEADS, -1, KEY_DIM),
        floats("key", -1, KV_HEADS, -1, KEY_DIM),
        floats("value", -1, KV_HEADS, -1, VALUE_DIM),
    )
    keys, values = (
        floats("keys", KV_HEADS, -1, PAGE, KEY_DIM),
        floats("values", KV_HEADS, -1, PAGE, VALUE_DIM),
    )
    places = [
        _parameter(name, ov.Type.i32, (-1,) * rank)
        for name, rank in (("pages", 2), ("written", 1), ("start", 1))
    ]
    slopes, sinks = floats("slopes", HEADS), floats("sinks", HEADS)
    place = Place(*places)
    distances = distances_of(query, place)
    bias = Bias(
        case.softcap,
        distances,
        slopes if case.has_slopes else None,
        sinks if case.has_sinks else None,
    )
    seen = is_seen(distances, case.window)
    geometry = LayerGeometry(HEADS, KV_HEADS, KEY_DIM, VALUE_DIM, case.window)
    key_now = gathered(keys, key, place, KV_HEADS, KEY_DIM)
    value_now = gathered(values, value, place, KV_HEADS, VALUE_DIM)
    out = attend(query, key_now, value_now, seen, bias, geometry)
    inputs = [query, key, value, keys, values, *places, slopes, sinks]
    model = ov.Model([ops.result(out)], [i.get_node() for i in inputs], "attention")  # pyright: ignore
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def _parameter(name: str, kind: ov.Type, shape: tuple[int, ...]) -> ov.Output:
    output = ops.parameter(ov.PartialShape(list(shape)), kind, name=name).output(0)
    output.get_tensor().set_names({name})
    return output


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("batch", "length"), [(3, 1), (1, 7)])
def test_each_token_makes_of_what_it_sees_what_the_formula_says(
    name: str, batch: int, length: int
) -> None:
    case = CASES[name]
    starts = np.array([70, 5, 33][:batch], np.int32)
    pages = np.array([[6, 1, 3], [0, 7, 2], [5, 4, 2]], np.int32)[:batch]
    keys, values = _floats(KV_HEADS, 8, PAGE, KEY_DIM), _floats(KV_HEADS, 8, PAGE, VALUE_DIM)
    query = _floats(batch, HEADS, length, KEY_DIM)
    key, value = _floats(batch, KV_HEADS, length, KEY_DIM), _floats(batch, KV_HEADS, length, 4)
    slopes, sinks = np.abs(_floats(HEADS)) * np.float32(0.1), _floats(HEADS)
    first = np.arange(batch, dtype=np.int32) * NUM_PAGES * PAGE + starts
    # What a row does not see may be anything: no number, even.
    for row, start in enumerate(starts.tolist()):
        page, place = divmod(start, PAGE)
        keys[:, pages[row, page], place:] = np.nan
    given = {
        "query": query,
        "key": key,
        "value": value,
        "keys": keys,
        "values": values,
        "pages": pages,
        "written": (first[:, None] + np.arange(length, dtype=np.int32)).reshape(-1),
        "start": starts,
        "slopes": slopes,
        "sinks": sinks,
    }
    found = _compiled(case)(given)[0]
    for row, start in enumerate(starts.tolist()):

        def whole(cache: Floats, new: Floats, row: int = row, start: int = start) -> Floats:
            held = cache[:, pages[row]].reshape(KV_HEADS, NUM_PAGES * PAGE, -1)[:, :start]
            return np.concatenate([held, new[row]], axis=1)

        expected = _expected(
            case, query[row], whole(keys, key), whole(values, value), slopes, sinks
        )
        np.testing.assert_allclose(found[row], expected, atol=2e-5)
