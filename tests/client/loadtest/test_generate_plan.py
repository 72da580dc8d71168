import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_client import InvalidRequestError
from enginehouse_client.loadtest.generate import (
    Fixed,
    GenerateSettings,
    Lengths,
    Lognormal,
    Uniform,
    parse_lengths,
)
from enginehouse_client.loadtest.generate.plan import (
    Planned,
    check_lengths,
    plan_random,
    plan_texts,
)
from enginehouse_client.loadtest.generate.spread import Spread

VOCABULARY = np.arange(100, 200, dtype=np.int32)


def chosen(**changes: object) -> GenerateSettings:
    given: dict[str, object] = {"num_distinct": 400, **changes}
    return GenerateSettings("127.0.0.1:1", "writer", **given)  # type: ignore[arg-type]


def request_of(planned: Planned) -> pb.GenerateRequest:
    return pb.GenerateStreamRequest.FromString(planned.payload).request


def ids_of(planned: Planned) -> list[int]:
    return list(request_of(planned).prompt.token_ids.ids)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("7", Fixed(7)),
        ("3..9", Uniform(3, 9)),
        ("lognormal:200,0.5", Lognormal(200, 0.5)),
        ("lognormal:200,0.5,900", Lognormal(200, 0.5, 900)),
    ],
)
def test_lengths_are_read_and_written_alike(text: str, lengths: Lengths) -> None:
    assert parse_lengths(text) == lengths
    assert str(lengths) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "x", "-3", "9..3", "0..3", "1..2..3", "lognormal:", "lognormal:5"),
        *("lognormal:9,1,8", "lognormal:5,-1", "lognormal:5,nan", "lognormal:inf,1"),
        "lognormal:5,1,9,9",
    ],
)
def test_what_is_no_length_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no length: N, A\.\.B or lognormal"):
        parse_lengths(text)


def test_lengths_are_distributed_as_asked() -> None:
    random = np.random.default_rng(1)
    assert set(Uniform(3, 5).draw(random, 1000).tolist()) == {3, 4, 5}
    drawn = Lognormal(200, 0.5, 900).draw(random, 20_000)
    assert drawn.max() <= 900
    assert np.median(drawn) == pytest.approx(200, rel=0.03)
    assert np.percentile(drawn, 84.1) == pytest.approx(200 * np.exp(0.5), rel=0.05)


def test_random_prompts_have_the_lengths_and_tokens_asked_for() -> None:
    planned = plan_random(
        chosen(prompt_tokens=Uniform(5, 9), output_tokens=Uniform(2, 4)), VOCABULARY, 512
    )
    assert len(planned) == 400
    for each in planned:
        ids, request = ids_of(each), request_of(each)
        assert len(ids) == each.prompt_tokens
        assert set(ids) <= set(VOCABULARY.tolist())
        assert request.stopping.max_new_tokens == each.output_tokens
    assert {each.prompt_tokens for each in planned} == {5, 6, 7, 8, 9}
    assert {each.output_tokens for each in planned} == {2, 3, 4}
    assert len({each.payload for each in planned}) == 400


def test_a_share_of_the_prompts_begins_alike() -> None:
    planned = plan_random(
        chosen(prompt_tokens=Fixed(6), shared_prefix_tokens=50, shared_fraction=0.25),
        VOCABULARY,
        512,
    )
    long = [ids_of(each) for each in planned if each.prompt_tokens == 56]
    assert len({tuple(ids[:50]) for ids in long}) == 1
    assert len({tuple(ids[50:]) for ids in long}) == len(long)
    assert {each.prompt_tokens for each in planned} == {6, 56}
    assert 60 <= len(long) <= 140  # of 400; deviation 9


def test_a_share_of_the_streams_is_cancelled_before_its_end() -> None:
    planned = plan_random(chosen(cancel_fraction=0.5, output_tokens=Fixed(4)), VOCABULARY, 512)
    after = [each.cancel_after for each in planned]
    assert set(after) == {0, 1, 2, 3}
    assert 150 <= after.count(0) <= 250


def test_the_same_seed_makes_the_same_requests() -> None:
    def payloads(seed: int) -> list[bytes]:
        return [each.payload for each in plan_random(chosen(seed=seed), VOCABULARY, 512)]

    assert payloads(3) == payloads(3)
    assert payloads(3) != payloads(4)


def test_the_request_says_what_the_settings_say() -> None:
    settings = chosen(version=2, temperature=0.5, top_p=0.25, sampling_seed=9, ignore_eos=False)
    request = request_of(plan_random(settings, VOCABULARY, 512)[0])
    assert (request.model, request.version) == ("writer", 2)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.25, 9)
    assert not request.stopping.ignore_eos
    default = request_of(plan_random(chosen(), VOCABULARY, 512)[0])
    assert default.stopping.ignore_eos
    assert default.output.token_ids
    assert not default.sampling.HasField("temperature")
    unary = plan_random(chosen(is_streamed=False), VOCABULARY, 512)[0]
    assert pb.GenerateRequest.FromString(unary.payload).prompt == default.prompt


@given(st.integers(2, 300), st.integers(0, 1), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_lengths_without_bound_fit_the_model_or_are_refused(
    max_tokens: int, prefix: int, seed: int
) -> None:
    load = chosen(
        prompt_tokens=Lognormal(20, 1),
        output_tokens=Lognormal(20, 1),
        shared_prefix_tokens=prefix,
        num_distinct=50,
        seed=seed,
    )
    try:
        check_lengths(load, max_tokens)
        planned = plan_random(load, VOCABULARY, max_tokens)
    except InvalidRequestError:
        assert max_tokens < 40
    else:
        assert all(each.prompt_tokens + each.output_tokens <= max_tokens for each in planned)
        assert all(len(ids_of(each)) == each.prompt_tokens for each in planned)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tokens": Fixed(500), "output_tokens": Fixed(13)},
        {"prompt_tokens": Uniform(1, 500), "output_tokens": Fixed(13)},
        {"prompt_tokens": Fixed(300), "output_tokens": Fixed(13), "shared_prefix_tokens": 200},
        {"prompt_tokens": Lognormal(5, 1), "output_tokens": Fixed(512)},
    ],
)
def test_lengths_that_exceed_the_model_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=r"513 together; writer takes 512: lower"):
        check_lengths(chosen(**changes), 512)


def test_every_text_is_sent_and_as_often() -> None:
    load = chosen(prompts=("a", "bb", "ccc"), num_distinct=6, output_tokens=Fixed(2))
    planned = plan_texts(load, [1, 2, 3], 512)
    texts = [request_of(each).prompt.text for each in planned]
    assert sorted(texts) == ["a", "a", "bb", "bb", "ccc", "ccc"]
    assert [each.prompt_tokens for each in planned] == [len(text) for text in texts]
    assert len(plan_texts(dataclasses.replace(load, num_distinct=1), [1, 2, 3], 512)) == 3


def test_a_text_that_is_too_long_is_named() -> None:
    load = chosen(prompts=("a", "bb"), output_tokens=Fixed(64))
    with pytest.raises(InvalidRequestError, match=r"prompt 2 has 450 tokens.*512 that writer"):
        plan_texts(load, [10, 450], 512)


def test_answers_without_bound_end_where_the_model_does() -> None:
    load = chosen(prompts=("a",), output_tokens=Lognormal(100, 2))
    outputs = {each.output_tokens for each in plan_texts(load, [500], 512)}
    assert max(outputs) == 12


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"shared_fraction": 1.5}, "shared_fraction is 1.5"),
        ({"cancel_fraction": -0.5}, "cancel_fraction is -0.5"),
        ({"shared_prefix_tokens": -1}, "must not be negative"),
        ({"prompts": ("a",), "shared_prefix_tokens": 3}, "is for random prompts"),
        ({"vocabulary": (9, 3)}, "vocabulary is 9 to 3"),
        ({"num_distinct": 0}, "num_distinct is 0"),
        ({"is_streamed": False, "cancel_fraction": 0.5}, "Generate has none"),
        ({"is_streamed": False, "slo_itl_ms": 5.0}, "tells no times"),
        ({"duration_s": 0.0}, "duration_s is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        chosen(**changes)


@given(st.lists(st.tuples(st.floats(1e-5, 100), st.integers(1, 4)), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_spread_tells_percentiles_nearly_and_the_rest_exactly(
    times: list[tuple[float, int]],
) -> None:
    spread = Spread()
    for time_s, num in times:
        spread.add(time_s, num)
    each_ms = np.repeat([t * 1e3 for t, _ in times], [num for _, num in times])
    found, histogram = spread.quantiles_ms(), spread.histogram()
    assert found is not None
    assert histogram is not None
    exact = np.percentile(each_ms, (50, 90, 99, 99.9), method="inverted_cdf")
    assert (found.p50, found.p90, found.p99, found.p99_9) == pytest.approx(tuple(exact), rel=0.0026)
    assert found.max == each_ms.max()
    assert found.mean == pytest.approx(each_ms.mean())
    assert sum(histogram.counts) == len(each_ms)
    assert histogram.edges_ms[0] <= each_ms.min() * 1.0001
    assert each_ms.max() <= histogram.edges_ms[-1] * 1.0001


def test_times_beyond_the_cells_are_kept_at_their_ends() -> None:
    spread = Spread()
    spread.add(0.0, 1)
    spread.add(5e3, 1)
    found = spread.quantiles_ms()
    assert found is not None
    assert found.max == 5e6
    assert found.p50 == pytest.approx(1e-3, rel=0.01)
