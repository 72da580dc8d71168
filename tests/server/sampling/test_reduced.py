"""Tokens from reduced logits against those from all logits: the very same, however they tie."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import ReducedLogits
from enginehouse_server.errors import DeviceError, DeviceLostError
from enginehouse_server.sampling import (
    Choice,
    SamplingSettings,
    SamplingState,
    choose,
    choose_reduced,
)

NUM_BEST = 32
PROMPT = (5, 9, 9, 11)
GREEDY = SamplingSettings(temperature=0)


class Device:
    """Reduces logits as a device may: of what equals the least kept, and of equals, any order."""

    def __init__(self, logits: Logits, seed: int = 0, num_best: int = NUM_BEST) -> None:
        self._logits = logits
        order = np.random.default_rng(seed).permutation(logits.shape[1])
        with np.errstate(invalid="ignore"):
            places = np.argsort(-logits[:, order], axis=1, kind="stable")[:, :num_best]
            best = np.take_along_axis(logits[:, order], places, axis=1)
            sums = np.exp(logits - best[:, :1]).sum(axis=1, dtype=np.float32)
        self.reduced = ReducedLogits(best, order[places].astype(np.int32), sums, self._fetch)
        self.fetched: list[tuple[int, int]] = []

    def _fetch(self, begin: int, end: int) -> Logits:
        self.fetched.append((begin, end))
        return self._logits[begin:end].copy()


class Both(NamedTuple):
    """What was chosen in both ways, and which rows had to be fetched."""

    whole: list[Choice]
    reduced: list[Choice]
    num_fetched: int


def both(
    logits: Logits, asked: Sequence[SamplingSettings], seed: int = 0, num_tokens: int = 1
) -> Both:
    """Several tokens of each of some sequences, of the same logits: random numbers go on."""
    device = Device(logits, seed)
    ways = []
    for num_best in (0, NUM_BEST):
        states = [SamplingState(a, PROMPT, i, None, num_best) for i, a in enumerate(asked)]
        choices = []
        for _ in range(num_tokens):
            if num_best:
                step = choose_reduced(device.reduced, range(len(logits)), states)
            else:
                step = choose(logits.copy(), states)
            for state, choice in zip(states, step, strict=True):
                if choice.error is None:
                    state.append(choice.token)
            choices += step
        ways.append(choices)
    return Both(ways[0], ways[1], len(device.fetched))


def check(found: Both) -> None:
    for whole, reduced in zip(found.whole, found.reduced, strict=True):
        assert reduced.token == whole.token
        assert str(reduced.error) == str(whole.error)
        assert (reduced.logprobs is None) == (whole.logprobs is None)
        if reduced.logprobs is not None and whole.logprobs is not None:
            assert [t for t, _ in reduced.logprobs.top] == [t for t, _ in whole.logprobs.top]
            ours = [reduced.logprobs.logprob, *(p for _, p in reduced.logprobs.top)]
            theirs = [whole.logprobs.logprob, *(p for _, p in whole.logprobs.top)]
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


@st.composite
def some_logits(draw: st.DrawFn) -> NDArray[np.float32]:
    """Rows of any spread; coarse ones tie, and some have tokens that cannot come at all."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    vocab = draw(st.sampled_from([NUM_BEST, NUM_BEST + 1, 100, 1500]))
    spread = draw(st.sampled_from([0.01, 1.0, 4.0, 30.0]))
    logits = generator.normal(0, spread, (draw(st.integers(1, 4)), vocab)).astype(np.float32)
    if draw(st.booleans()):
        step = draw(st.sampled_from([0.25, 1.0, 8.0]))
        logits = (np.round(logits / step) * step).astype(np.float32)
    if draw(st.booleans()):
        share = draw(st.sampled_from([0.1, 0.9, 0.99]))
        hidden = generator.random(logits.shape) < share
        hidden[:, 0] = False
        logits[hidden] = -np.inf
    if draw(st.integers(0, 9)) == 0:
        logits[0, draw(st.integers(0, vocab - 1))] = draw(st.sampled_from([np.nan, np.inf]))
    return logits


plain_settings = st.builds(  # of those that the best may decide
    SamplingSettings,
    temperature=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    top_k=st.sampled_from([0, 0, 0, 2, 20]),
    top_p=st.sampled_from([1.0, 0.999, 0.95, 0.5]),
    min_p=st.sampled_from([0.02, 0.3, 0.0]),
    bad_words=st.sampled_from([(), (), ((3,), (9, 11, 7)), tuple((i,) for i in range(30))]),
    num_logprobs=st.sampled_from([None, 5]),
    seed=st.integers(0, 2**64 - 1),
)
some_settings = plain_settings | st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.0, 0.2, 0.7, 0.99, 1.0, 1.5]),
    top_k=st.sampled_from([0, 0, 1, 2, 20, NUM_BEST - 1, NUM_BEST, 200]),
    top_p=st.sampled_from([1.0, 1.0, 0.999, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.0, 0.4]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.0, -0.2]),
    logit_bias=st.sampled_from([{}, {}, {}, {3: 50.0}]),
    bad_words=st.sampled_from([(), (), ((3,), (9, 11, 7)), tuple((i,) for i in range(30))]),
    banned_until_min=st.sampled_from([frozenset(), frozenset({0, 1, 2})]),
    min_new_tokens=st.sampled_from([0, 1, 5]),
    num_logprobs=st.sampled_from([None, None, 0, 5, NUM_BEST - 1, NUM_BEST]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=300, deadline=None)
@given(some_logits(), st.data(), st.integers(0, 2**32))
def test_the_same_tokens_come_of_both_forms(
    logits: NDArray[np.float32], data: st.DataObject, seed: int
) -> None:
    asked = [data.draw(some_settings) for _ in logits]
    check(both(logits, asked, seed, num_tokens=3))


def spread_logits(seed: int, rows: int = 8, vocab: int = 5000) -> NDArray[np.float32]:
    """As of a model that is rather sure: few tokens matter."""
    return (np.random.default_rng(seed).gumbel(0, 2.5, (rows, vocab))).astype(np.float32)


@pytest.mark.parametrize(
    "asked",
    [
        GREEDY,
        replace(GREEDY, num_logprobs=5),
        replace(GREEDY, bad_words=((3,),), banned_until_min=frozenset({2}), min_new_tokens=9),
        SamplingSettings(top_k=20),
        SamplingSettings(top_k=20, top_p=0.9, min_p=0.01, temperature=1.7, num_logprobs=20),
        SamplingSettings(min_p=0.2),
        SamplingSettings(top_p=0.6),
        SamplingSettings(top_p=0.8, temperature=0.6, num_logprobs=1),
    ],
    ids=str,
)
def test_what_the_best_decide_needs_no_other_logits(asked: SamplingSettings) -> None:
    logits = spread_logits(1)
    found = both(logits, [replace(asked, seed=s) for s in range(len(logits))], num_tokens=20)
    check(found)
    assert found.num_fetched == 0


@pytest.mark.parametrize(
    "asked",
    [
        SamplingSettings(),
        SamplingSettings(top_k=NUM_BEST),
        SamplingSettings(top_p=0.9, temperature=1.3),
        replace(GREEDY, num_logprobs=NUM_BEST),
        replace(GREEDY, repetition_penalty=1.1),
        replace(GREEDY, presence_penalty=0.1),
        replace(GREEDY, frequency_penalty=0.1),
        replace(GREEDY, logit_bias={4: 0.5}),
    ],
    ids=str,
)
def test_what_the_best_cannot_decide_is_said_before_the_step(asked: SamplingSettings) -> None:
    assert not SamplingState(asked, PROMPT, num_best=NUM_BEST).takes_reduced


def test_nothing_is_reduced_without_reduced_logits() -> None:
    assert not SamplingState(GREEDY, PROMPT).takes_reduced


def test_ties_that_the_device_may_break_otherwise_are_looked_up() -> None:
    tied = np.zeros((3, 100), np.float32)
    tied[1, 40:] = 1  # more than are kept
    tied[2, 60:65] = 1
    found = both(tied, [GREEDY, GREEDY, GREEDY], seed=3)
    check(found)
    assert [choice.token for choice in found.reduced] == [0, 40, 60]
    assert found.num_fetched == 2, "of the last, all that tie are known"


def test_a_nucleus_whose_border_the_sum_s_error_may_shift_is_looked_up() -> None:
    row = np.full((1, 1000), -9.0, np.float32)
    row[0, :2] = np.log([0.75, 0.25]).astype(np.float32)
    total = float(np.exp(row.astype(np.float64)).sum())
    for share, num_fetched in ((0.75 / total * (1 + 2e-5), 1), (0.75 / total * 1.01, 0)):
        found = both(row, [SamplingSettings(top_p=share, seed=4)])
        check(found)
        assert found.num_fetched == num_fetched


def _leading(second: float, others: float, num_others: int = 1000) -> NDArray[np.float32]:
    """A likeliest token of logit 0, one behind it, and many others alike."""
    return np.array([[0.0, second, *[others] * num_others]], np.float32)


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        # More reach the share of the likeliest one than are known.
        (_leading(-0.1, -0.2), SamplingSettings(min_p=0.5)),
        # One more is wanted than is known.
        (_leading(-0.1, -0.2), SamplingSettings(top_k=3)),
        (_leading(-0.1, -0.2), replace(GREEDY, num_logprobs=3)),
        # More than are known have to be added up.
        (_leading(-0.1, -0.2), SamplingSettings(top_p=0.95)),
        # At this temperature the others, all at the border, still weigh most.
        (_leading(-1.0, -1.5), SamplingSettings(top_p=0.25, temperature=0.5)),
        # Banned tokens, none of them among the best, were most of the sum.
        (
            _leading(-0.5, -7.5),
            SamplingSettings(top_p=0.6, bad_words=tuple((i,) for i in range(2, 1000))),
        ),
    ],
    ids=[
        "min_p",
        "top_k",
        "logprobs",
        "top_p",
        "top_p at a low temperature",
        "top_p with banned tokens",
    ],
)
def test_what_others_may_have_a_part_in_is_looked_up(
    row: NDArray[np.float32], asked: SamplingSettings
) -> None:
    for seed in range(20):
        found = both(row, [replace(asked, seed=seed)])
        check(found)
        assert found.num_fetched == 1


def test_a_row_that_is_no_number_fails_alone_as_it_does_elsewhere() -> None:
    logits = spread_logits(2, rows=3)
    logits[1, 77] = np.nan
    found = both(logits, [GREEDY, GREEDY, GREEDY])
    check(found)
    assert isinstance(found.reduced[1].error, DeviceError)
    assert found.reduced[0].error is found.reduced[2].error is None


def test_a_row_that_cannot_be_fetched_fails_alone() -> None:
    def fetch(begin: int, end: int) -> Logits:
        raise DeviceError("the copy failed")

    reduced = Device(np.zeros((2, 100), np.float32)).reduced._replace(fetch=fetch)
    reduced.best[0, 0] = 1
    states = [SamplingState(GREEDY, PROMPT, num_best=NUM_BEST) for _ in range(2)]
    one, other = choose_reduced(reduced, [0, 1], states)
    assert one.token == reduced.tokens[0, 0]
    assert str(other.error) == "the copy failed"


def test_a_lost_device_is_no_single_row_s_fault() -> None:
    def fetch(begin: int, end: int) -> Logits:
        raise DeviceLostError("CUDA_ERROR_ILLEGAL_ADDRESS")

    reduced = Device(np.zeros((1, 100), np.float32)).reduced._replace(fetch=fetch)
    with pytest.raises(DeviceLostError):
        choose_reduced(reduced, [0], [SamplingState(GREEDY, PROMPT, num_best=NUM_BEST)])
