import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from enginehouse_builder.certify import (
    ContinuationFile,
    JudgedDecoder,
    certify_decoder,
    read_continuations,
    write_continuations,
)
from enginehouse_builder.certify.joint import Work, run_jointly
from enginehouse_builder.certify.token_figures import spread_of
from enginehouse_builder.certify.tolerance import TOKEN_TIE
from enginehouse_builder.errors import BuildError, CertificateError
from enginehouse_server.engine.base import Logits

from .scripted import LIMITS, VOCAB, ScriptedDecoder, reference, right

PROMPTS = [[(7 * i + 3 * j) % VOCAB for j in range(2 + 5 * i)] for i in range(9)]
REFERENCE = reference(PROMPTS)
EXACT = JudgedDecoder("fp32", "fp32")
ROUNDED = JudgedDecoder("int8", "fp32")
SLOTS = replace(
    LIMITS, block_size=120, num_blocks=5, max_sequences=4, mixes=False, shares_blocks=False
)


@pytest.mark.parametrize("limits", [LIMITS, SLOTS])
def test_an_exact_engine_gets_a_certificate_without_error(limits: object) -> None:
    found = certify_decoder(ScriptedDecoder(limits), EXACT, REFERENCE)  # type: ignore[arg-type]
    certificate = found.certificate
    assert certificate.token_agreement == certificate.top1_agreement == found.clear_agreement == 1
    assert certificate.max_abs_error == pytest.approx(0, abs=1e-6)
    assert certificate.mean_kl == pytest.approx(0, abs=1e-9)
    assert certificate.perplexity == pytest.approx(certificate.reference_perplexity)
    assert certificate.num_prompts == len(PROMPTS)
    assert certificate.longest_prompt == max(len(prompt) for prompt in PROMPTS)
    assert certificate.tolerance == TOKEN_TIE
    assert certificate.runtime == "scripted 1"


def test_probes_are_what_the_engine_itself_goes_on_with() -> None:
    probes = certify_decoder(ScriptedDecoder(), EXACT, REFERENCE).probes
    assert len(probes) == 4
    assert {len(probe.prompt) for probe in probes} >= {2, 42}
    for probe in probes:
        tokens = [*probe.prompt]
        for token in probe.tokens:
            assert token == right(tokens).argmax()
            tokens.append(token)
        best, logit = probe.top[0]
        assert best == probe.tokens[0]
        assert logit == pytest.approx(right(probe.prompt).max())


@pytest.mark.parametrize("limits", [LIMITS, SLOTS])
def test_sequences_join_while_others_run_and_twins_begin_with_their_blocks(limits: object) -> None:
    engine = ScriptedDecoder(limits)  # type: ignore[arg-type]
    works = [Work(prompt, 6) for prompt in PROMPTS]
    twins = [works[8]._replace(twin_of=8), works[6]._replace(twin_of=6)]
    ran = run_jointly(engine, works + twins)
    expected = [list(text.tokens) for text in REFERENCE.continuations]
    assert ran == [*expected, expected[8], expected[6]]
    assert max(len(step) for step in engine.steps) > 1
    begun = [item for step in engine.steps for item in step if item.num_cached]
    assert any(len(item.tokens) > 1 for item in begun)  # a prompt in pieces
    first = Counter(item.blocks[0] for step in engine.steps for item in step[:1])
    assert len(first) > 1
    if engine.limits.mixes:
        assert any({len(i.tokens) > 1 for i in step} == {True, False} for step in engine.steps)
    # Of a twin's prompt little is computed again.
    computed = sum(len(item.tokens) for step in engine.steps for item in step)
    assert computed < sum(len(prompt) + 5 for prompt in PROMPTS) + 2 * 5 + 2 * LIMITS.block_size


def test_a_cache_with_no_room_for_a_sequence_is_named() -> None:
    engine = ScriptedDecoder(replace(LIMITS, num_blocks=3))
    with pytest.raises(BuildError, match="needs 12 blocks of cache, and the engine has 3"):
        run_jointly(engine, [Work(PROMPTS[8], 6)])


@pytest.mark.parametrize("num_sequences", [1, 2])
def test_a_cache_of_the_longest_sequence_alone_is_enough(num_sequences: int) -> None:
    limits = replace(
        LIMITS, num_blocks=12 * num_sequences, max_tokens=48, max_sequences=num_sequences
    )
    assert (
        certify_decoder(ScriptedDecoder(limits), EXACT, REFERENCE).certificate.token_agreement == 1
    )


class _Faulty(ScriptedDecoder):
    """Changes the logits after as many tokens as `length`, or wherever others are beside."""

    def __init__(self, change: Logits, length: int = 0, *, only_beside: bool = False) -> None:
        super().__init__()
        self._change, self._length, self._only_beside = change, length, only_beside

    def answer(self, tokens: Sequence[int], *, beside: bool) -> Logits:
        is_hit = (beside if self._only_beside else True) and self._length in (0, len(tokens))
        answer: Logits = (right(tokens) + self._change * is_hit).astype(np.float32)
        return answer


def _raised(size: float) -> Logits:
    change: Logits = np.zeros(VOCAB, np.float32)
    change[5] = size
    return change


def test_a_wrong_engine_fails_with_figures_and_the_prompt() -> None:
    with pytest.raises(CertificateError) as raised:
        certify_decoder(_Faulty(_raised(4.0), 24), EXACT, REFERENCE)
    message = str(raised.value)
    assert "off by 4" in message
    assert "0.0001 is allowed" in message
    assert "'text 4'" in message
    assert "Nothing was published" in message


@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_an_engine_that_gives_no_number_fails(junk: float) -> None:
    change = np.full(VOCAB, junk, np.float32)
    with pytest.raises(CertificateError, match="off by"):
        certify_decoder(_Faulty(change, 24), EXACT, REFERENCE)


def test_an_engine_that_chooses_otherwise_beside_others_fails() -> None:
    with pytest.raises(CertificateError, match="otherwise beside other sequences than alone"):
        certify_decoder(_Faulty(_raised(20.0), only_beside=True), EXACT, REFERENCE)


SCALE = spread_of(REFERENCE.continuations)
TEXT = REFERENCE.continuations[3]
BEFORE = [*TEXT.prompt, *TEXT.tokens[:-1]]
FIRST, SECOND = TEXT.top_ids[-1][:2]


def _turned(gap: float) -> Logits:
    """Logits at the last place of a text, the second token now ahead by a share of the spread."""
    logits = right(BEFORE).copy()
    logits[SECOND] = logits[FIRST] + gap * SCALE
    return logits


def _with_turned(gap: float) -> ContinuationFile:
    logits = _turned(gap).astype(np.float64)
    ids = [SECOND, FIRST, *TEXT.top_ids[-1][2:]]
    text = replace(
        TEXT,
        tokens=(*TEXT.tokens[:-1], SECOND),
        top_ids=(*TEXT.top_ids[:-1], tuple(ids)),
        top_logits=(*TEXT.top_logits[:-1], tuple(float(logits[i]) for i in ids)),
        log_sums=(*TEXT.log_sums[:-1], float(np.log(np.exp(logits).sum()))),
    )
    texts = (*REFERENCE.continuations[:3], text, *REFERENCE.continuations[4:])
    return replace(REFERENCE, continuations=texts)


class _Turning(ScriptedDecoder):
    """Prefers the other one of the two, each logit off by a share of the spread."""

    def __init__(self, gap: float, error: float) -> None:
        super().__init__()
        self._gap, self._error = gap, error * SCALE

    def answer(self, tokens: Sequence[int], *, beside: bool) -> Logits:
        if [*tokens] != BEFORE:
            return right(tokens)
        logits = _turned(self._gap)
        logits[FIRST] += self._error
        logits[SECOND] -= self._error
        return logits


class _Shifted(ScriptedDecoder):
    """Adds the same to all logits, as the original does, and something to one of them."""

    def __init__(self, offset: float, size: float) -> None:
        super().__init__()
        self._offset, self._change = offset, _raised(size)

    def answer(self, tokens: Sequence[int], *, beside: bool) -> Logits:
        answer: Logits = (right(tokens) + self._offset + self._change).astype(np.float32)
        return answer


def _shifted(offset: float) -> ContinuationFile:
    texts = tuple(
        replace(
            text,
            top_logits=tuple(tuple(x + offset for x in row) for row in text.top_logits),
            log_sums=tuple(x + offset for x in text.log_sums),
            medians=tuple(x + offset for x in text.medians),
        )
        for text in REFERENCE.continuations
    )
    return replace(REFERENCE, continuations=texts)


@pytest.mark.parametrize("offset", [-1000.0, 1000.0])
def test_logits_that_are_all_far_from_zero_get_no_wider_gate(offset: float) -> None:
    reference, size = _shifted(offset), 4 * TOKEN_TIE * SCALE
    assert spread_of(reference.continuations) == pytest.approx(SCALE)
    certify_decoder(_Shifted(offset, 0.0), EXACT, reference)
    with pytest.raises(CertificateError, match="of what logits are spread by"):
        certify_decoder(_Shifted(offset, size), EXACT, reference)


def test_a_reference_of_an_earlier_build_is_judged_by_its_largest_logit(tmp_path: Path) -> None:
    file = tmp_path / "reference.json"
    write_continuations(REFERENCE, file)
    document = json.loads(file.read_text())
    for text in document["continuations"]:
        del text["medians"]
    file.write_text(json.dumps(document))
    found = read_continuations(file)
    largest = max(abs(x) for t in found.continuations for row in t.top_logits for x in row)
    certificate = certify_decoder(ScriptedDecoder(), EXACT, found).certificate
    assert certificate.scale == pytest.approx(largest)


def test_a_tie_within_rounding_is_no_disagreement() -> None:
    found = certify_decoder(_Turning(1e-6, 2e-6), EXACT, _with_turned(1e-6)).certificate
    assert found.token_agreement == 1
    assert found.num_tokens == 6 * (len(PROMPTS) + 2) - 1
    assert found.top1_agreement < 1


def test_a_preference_beyond_rounding_must_be_kept() -> None:
    gap, error = 1.6 * TOKEN_TIE, 0.9 * TOKEN_TIE
    with pytest.raises(CertificateError) as raised:
        certify_decoder(_Turning(gap, error), EXACT, _with_turned(gap))
    message = str(raised.value)
    assert "greedy tokens are the original's, and all must be" in message
    assert f"it gives token {FIRST}, the original {SECOND}" in message


def test_rounded_weights_may_be_off_by_what_their_precision_allows() -> None:
    class Noisy(ScriptedDecoder):
        def answer(self, tokens: Sequence[int], *, beside: bool) -> Logits:
            noise = np.random.default_rng(len(tokens)).normal(0, self.size, VOCAB)
            return right(tokens) + noise.astype(np.float32)

        size = 0.05

    engine = Noisy()
    found = certify_decoder(engine, ROUNDED, REFERENCE)
    assert 0 < found.certificate.mean_kl < 0.05
    assert found.certificate.token_agreement <= 1
    with pytest.raises(CertificateError, match=r"0\.0001 is allowed"):
        certify_decoder(engine, EXACT, REFERENCE)
    engine.size = 0.6
    with pytest.raises(CertificateError, match=r"nats off on average|near ties aside|is allowed"):
        certify_decoder(engine, ROUNDED, REFERENCE)


def test_a_few_tokens_may_go_to_other_experts_where_weights_are_rounded() -> None:
    length = len(PROMPTS[4]) + 2
    change = _raised(-0.5 * max(float(np.abs(right(p)).max()) for p in PROMPTS))
    certify_decoder(_Faulty(change, length), replace(ROUNDED, is_mixture=True), REFERENCE)
    with pytest.raises(CertificateError, match=r"0\.15 is allowed"):
        certify_decoder(_Faulty(change, length), ROUNDED, REFERENCE)
    with pytest.raises(CertificateError, match=r"0\.0001 is allowed"):
        certify_decoder(_Faulty(change, length), replace(EXACT, is_mixture=True), REFERENCE)


def test_no_more_than_a_few_may() -> None:
    mixture = replace(ROUNDED, is_mixture=True)
    with pytest.raises(CertificateError) as raised:
        certify_decoder(_Faulty(_raised(-0.3 * SCALE)), mixture, REFERENCE)
    message = str(raised.value)
    assert "places a logit is off by more than 0.15 of what logits are spread by" in message
    assert "10% of them may" in message


def test_no_more_than_a_few_may_be_behind_beside_others() -> None:
    class Swapping(ScriptedDecoder):
        """Prefers the second best beside others."""

        def answer(self, tokens: Sequence[int], *, beside: bool) -> Logits:
            logits = right(tokens).copy()
            if beside:
                first, second = np.argsort(-logits)[:2]
                logits[[first, second]] = logits[[second, first]]
            return logits

    mixture = replace(ROUNDED, is_mixture=True)
    with pytest.raises(CertificateError, match=r"places a token chosen beside other sequences is"):
        certify_decoder(Swapping(), mixture, REFERENCE)


def test_the_long_prompt_is_judged_alone() -> None:
    """What goes wrong there alone is a small part of the means."""
    prompts = [[(7 * i + 3 * j) % VOCAB for j in range(2 + i % 9)] for i in range(40)]
    found = reference([*prompts, PROMPTS[8]])
    *short, long = found.continuations
    whole = replace(found, continuations=(replace(long, prompt_losses=()), *short))

    class Lost(ScriptedDecoder):
        def answer(self, tokens: Sequence[int], *, beside: bool) -> Logits:
            is_long = len(tokens) >= len(PROMPTS[8])
            other = right(tokens[1:] if is_long else tokens)
            answer: Logits = ((right(tokens) + 2 * other) / 3).astype(np.float32)
            return answer

    mixture = replace(ROUNDED, precision="int4", is_mixture=True)
    with pytest.raises(CertificateError, match="after the long prompt alone"):
        certify_decoder(Lost(), mixture, whole)


def test_perplexity_beyond_the_tolerance_fails() -> None:
    class Surprised(ScriptedDecoder):
        def answer(self, tokens: Sequence[int], *, beside: bool) -> Logits:
            is_own = any([*tokens[: len(p)]] == p and len(tokens) >= len(p) for p in PROMPTS)
            return right(tokens) if is_own else -right(tokens)

    with pytest.raises(CertificateError, match="its perplexity on the samples is"):
        certify_decoder(Surprised(), ROUNDED, reference(PROMPTS[8:]))


def test_the_reference_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("version") / "reference.json"
    write_continuations(REFERENCE, file)
    assert read_continuations(file) == REFERENCE
