"""The sampler against the plainest implementation that says the same: sort everything, in fp64."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from enginehouse_server.errors import DeviceError, InvalidRequestError
from enginehouse_server.sampling import SamplingSettings, SamplingState, choose, score_tokens

VOCAB = 1500
EOS = 3
PROMPT = (5, 9, 9, 700)


def random_logits(seed: int, rows: int = 1, vocab: int = VOCAB) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, (rows, vocab)).astype(np.float32)


def shaped(
    row: NDArray[np.float32], asked: SamplingSettings, tokens: list[int]
) -> dict[int, float]:
    """Logits after penalties and bias."""
    answer = Counter(tokens[len(PROMPT) :])
    result = {}
    for token, value in enumerate(row.astype(np.float64)):
        if token in tokens:
            penalty = asked.repetition_penalty
            value = value / penalty if value > 0 else value * penalty  # noqa: PLW2901
        if answer[token]:
            value -= asked.presence_penalty + asked.frequency_penalty * answer[token]  # noqa: PLW2901
        result[token] = value + asked.logit_bias.get(token, 0.0)
    return result


def allowed(
    logits: dict[int, float], asked: SamplingSettings, tokens: list[int]
) -> dict[int, float]:
    banned = {
        words[-1]
        for words in asked.bad_words
        if len(words) == 1 or tokens[1 - len(words) :] == list(words[:-1])
    }
    if len(tokens) - len(PROMPT) < asked.min_new_tokens:
        banned |= asked.banned_until_min
    return {t: v for t, v in logits.items() if t not in banned}


def distribution(logits: dict[int, float], asked: SamplingSettings) -> dict[int, float]:
    """Probabilities of the tokens that may be drawn."""
    order = sorted(logits, key=lambda t: (-logits[t], t))
    if asked.temperature == 0:
        return {order[0]: 1.0}
    best = logits[order[0]]
    weights = {t: math.exp((logits[t] - best) / asked.temperature) for t in order}
    if asked.top_k:
        weights = {t: weights[t] for t in order[: asked.top_k]}
    total, reached, kept = sum(weights.values()), 0.0, {}
    for token, weight in weights.items():
        kept[token] = weight
        reached += weight
        if reached >= asked.top_p * total:
            break
    kept = {t: w for t, w in kept.items() if w >= asked.min_p}
    total = sum(kept.values())
    return {t: w / total for t, w in kept.items()}


asked_settings = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 40, 1400, 5000]),
    top_p=st.sampled_from([0.1, 0.7, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    presence_penalty=st.sampled_from([0.0, 1.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=4),
    bad_words=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), max_size=4),
    seed=st.integers(0, 2**64 - 1),
    num_logprobs=st.sampled_from([None, 0, 3]),
    banned_until_min=st.sampled_from([frozenset[int](), frozenset({EOS, 4})]),
    min_new_tokens=st.sampled_from([0, 3]),
)


def state_of(asked: SamplingSettings, answer: list[int], index: int = 0) -> SamplingState:
    state = SamplingState(asked, PROMPT, index)
    for token in answer:
        state.append(token)
    return state


@settings(deadline=None)
@given(asked_settings, st.lists(st.integers(0, 12), max_size=6), st.integers(0, 10**6))
def test_a_token_is_drawn_from_the_distribution_that_was_asked_for(
    asked: SamplingSettings, answer: list[int], seed: int
) -> None:
    logits = random_logits(seed)
    after = shaped(logits[0], asked, [*PROMPT, *answer])
    expected = distribution(allowed(after, asked, [*PROMPT, *answer]), asked)
    # At a border of the cut fp32 may decide otherwise than fp64: a little wider is right too.
    looser = replace(asked, top_p=min(asked.top_p * 1.000001, 1.0), min_p=asked.min_p * (1 - 1e-5))
    possible = distribution(allowed(after, looser, [*PROMPT, *answer]), looser)
    [choice] = choose(logits.copy(), [state_of(asked, answer)])
    assert choice.error is None
    assert choice.token in possible
    if asked.temperature == 0 or asked.top_k == 1:
        assert choice.token in expected
    if asked.num_logprobs is None:
        assert choice.logprobs is None
        return
    assert choice.logprobs is not None
    best = max(after.values())
    normalizer = best + math.log(sum(math.exp(v - best) for v in after.values()))
    assert choice.logprobs.logprob == pytest.approx(after[choice.token] - normalizer, abs=1e-4)
    top = sorted(after, key=lambda t: (-after[t], t))[: asked.num_logprobs]
    assert [t for t, _ in choice.logprobs.top] == top
    for token, logprob in choice.logprobs.top:
        assert logprob == pytest.approx(after[token] - normalizer, abs=1e-4)


@pytest.mark.parametrize(
    "asked",
    [
        SamplingSettings(temperature=0.7),
        SamplingSettings(temperature=1.5, top_k=6),
        SamplingSettings(temperature=1.2, top_p=0.9),
        SamplingSettings(temperature=2.5, top_p=0.98),
        SamplingSettings(temperature=2.0, min_p=0.05),
        SamplingSettings(temperature=1.5, top_k=20, top_p=0.8, min_p=0.02),
    ],
)
def test_tokens_come_as_often_as_the_distribution_says(asked: SamplingSettings) -> None:
    logits = random_logits(7, vocab=1100)
    expected = distribution(dict(enumerate(logits[0].astype(float))), asked)
    state, num_draws = SamplingState(asked, PROMPT), 4000
    drawn = Counter(choose(logits.copy(), [state])[0].token for _ in range(num_draws))
    assert set(drawn) <= set(expected)
    for token, probability in expected.items():
        spread = math.sqrt(num_draws * probability * (1 - probability))
        assert abs(drawn[token] - num_draws * probability) <= 5 * spread + 3


@settings(deadline=None)
@given(st.lists(asked_settings, min_size=2, max_size=6), st.integers(0, 10**6))
def test_what_is_beside_a_row_changes_nothing(several: list[SamplingSettings], seed: int) -> None:
    logits = random_logits(seed, len(several))
    states = [SamplingState(s, PROMPT, i) for i, s in enumerate(several)]
    together = choose(logits.copy(), states)
    for i, asked in enumerate(several):
        alone = choose(logits[i : i + 1].copy(), [SamplingState(asked, PROMPT, i)])
        assert alone == [together[i]]


def test_each_sequence_of_a_request_and_each_seed_draws_its_own() -> None:
    asked = SamplingSettings(temperature=2.0, seed=2**64 - 1)
    variants = [(asked, 0), (asked, 1), (replace(asked, seed=1), 0)]

    def answer_of(asked: SamplingSettings, index: int) -> list[int]:
        state = SamplingState(asked, PROMPT, index)
        for position in range(20):
            state.append(choose(random_logits(position), [state])[0].token)
        return state.tokens

    answers = [answer_of(*v) for v in variants]
    assert answers == [answer_of(*v) for v in variants]
    assert len({tuple(a) for a in answers}) == 3


def test_the_lowest_of_equal_tokens_is_the_most_likely() -> None:
    logits = np.zeros((3, 900), np.float32)
    logits[:, [800, 17, 20]] = 5
    several = [
        SamplingSettings(temperature=0.0, num_logprobs=2),
        SamplingSettings(temperature=1.0, top_k=1),
        SamplingSettings(temperature=1.0, top_p=1e-9),
    ]
    choices = choose(logits, [SamplingState(s, PROMPT) for s in several])
    assert [c.token for c in choices] == [17, 17, 17]
    assert choices[0].logprobs is not None
    assert [t for t, _ in choices[0].logprobs.top] == [17, 20]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_numbers_fails_alone(wrong: float, temperature: float) -> None:
    logits = random_logits(1, 2)
    logits[0, 55] = wrong
    asked = SamplingSettings(temperature=temperature, num_logprobs=1)
    failed, fine = choose(logits, [SamplingState(asked, PROMPT) for _ in range(2)])
    assert isinstance(failed.error, DeviceError)
    assert fine.error is None
    assert fine.logprobs is not None


def test_settings_that_leave_no_token_are_told_so() -> None:
    asked = SamplingSettings(bad_words=[[0], [1]], num_logprobs=1)
    [choice] = choose(np.zeros((1, 2), np.float32), [SamplingState(asked, [0])])
    assert isinstance(choice.error, InvalidRequestError)


def test_an_end_that_comes_too_early_is_banned_until_the_minimum() -> None:
    asked = SamplingSettings(temperature=0, banned_until_min=frozenset({EOS}), min_new_tokens=2)
    state = SamplingState(asked, PROMPT)
    for _ in range(4):
        logits = np.zeros((1, 10), np.float32)
        logits[0, EOS] = 9
        state.append(choose(logits, [state])[0].token)
    assert state.tokens[len(PROMPT) :] == [0, 0, EOS, EOS]


def test_the_tokens_of_a_prompt_are_scored_by_log_softmax() -> None:
    logits = random_logits(3, 4, 50)
    scored = score_tokens(logits, [1, 49, 0, 7], 2)
    for row, token, (logprob, top) in zip(logits.astype(float), [1, 49, 0, 7], scored, strict=True):
        expected = row - math.log(np.exp(row).sum())
        assert logprob == pytest.approx(expected[token], abs=1e-5)
        assert [t for t, _ in top] == np.argsort(-expected)[:2].tolist()


def test_a_row_that_cannot_be_treated_does_not_reach_the_others() -> None:
    greedy = SamplingSettings(temperature=0)
    wide = replace(greedy, repetition_penalty=1.5)
    states = [
        SamplingState(greedy, PROMPT),
        SamplingState(wide, (5, VOCAB)),
        SamplingState(replace(greedy, bad_words=((VOCAB,),)), PROMPT),
        SamplingState(wide, PROMPT),
    ]
    logits = random_logits(4, len(states))
    alone = [choose(logits[i : i + 1].copy(), [states[i]])[0] for i in (0, 3)]
    first, *failed, last = choose(logits.copy(), states)
    assert [first, last] == alone
    assert first.error is last.error is None
    assert all(isinstance(choice.error, DeviceError) for choice in failed)
