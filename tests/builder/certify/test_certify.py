from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from enginehouse_builder.certify import (
    TOLERANCES,
    Judged,
    ReferenceAnswer,
    ReferenceFile,
    certify,
    check_padding,
    read_reference,
    write_reference,
)
from enginehouse_builder.certify.compare import Problem
from enginehouse_builder.errors import CertificateError
from enginehouse_builder.manifest import ClassifyTask, Limits
from enginehouse_server.engine.base import EncoderLane, Logits, Precision, Shape, TokenRow
from enginehouse_server.text import Encoding

TASK = ClassifyTask(("a", "b", "c"), "single_label", True, "invariant", 0)
LIMITS = Limits(32, 4, 128)
JUDGED = Judged("fp32", TASK, LIMITS)
ROWS = [Encoding(list(range(1, 2 + n)), None, 1 + n) for n in range(20)]
Answer = Callable[[TokenRow, Shape], Sequence[float]]


def _right(row: TokenRow, _: Shape) -> list[float]:
    length = len(row.ids)
    return [float(np.sin(length)), float(np.cos(length)), length / 10]


class AnsweringEngine:
    """An engine, and its lane, that answers by a function of row and shape."""

    backend = "scripted"
    runtime_version = "1"
    device = "none"

    def __init__(self, answer: Answer) -> None:
        self.shapes: list[Shape] = []
        self._answer = answer
        self._logits: Logits = np.zeros((0, 0), np.float32)

    @property
    def lanes(self) -> Sequence[EncoderLane]:
        return [self]

    def close(self) -> None:
        pass

    def start(self, rows: Sequence[TokenRow], shape: Shape) -> None:
        self.shapes.append(shape)
        self._logits = np.array([self._answer(row, shape) for row in rows], np.float32)

    def wait(self) -> Logits:
        return self._logits


def _reference(rows: Sequence[Encoding] = ROWS, pairs: Sequence[int] = (7,)) -> ReferenceFile:
    answers = [
        ReferenceAnswer(
            f"text {i}", "more" if i in pairs else None, tuple(_right(row, Shape(1, 1)))
        )
        for i, row in enumerate(rows)
    ]
    return ReferenceFile("transformers", "0" * 64, 32, tuple(answers))


def test_an_exact_engine_gets_a_certificate_without_error() -> None:
    found = certify(AnsweringEngine(_right), JUDGED, ROWS, _reference())
    certificate = found.certificate
    assert certificate.max_abs_error == pytest.approx(0, abs=1e-6)
    assert certificate.top1_agreement == 1
    assert certificate.min_cosine == pytest.approx(1)
    exact = np.array([answer.logits for answer in _reference().answers])
    centred = exact - exact.mean(axis=1, keepdims=True)
    assert certificate.scale == pytest.approx(np.abs(centred - centred.mean(axis=0)).max())
    assert certificate.num_samples == len(ROWS)
    assert certificate.tolerance == TOLERANCES["fp32"].error
    assert certificate.runtime == "scripted 1"


def test_a_wrong_engine_fails_with_figures_and_the_text() -> None:
    def wrong(row: TokenRow, shape: Shape) -> list[float]:
        first, *rest = _right(row, shape)
        return [first + 0.5 * (len(row.ids) == 4), *rest]

    with pytest.raises(CertificateError) as raised:
        certify(AnsweringEngine(wrong), JUDGED, ROWS, _reference())
    message = str(raised.value)
    assert "off by 0.5, which is 0.47 of what they vary by over the samples (1.0" in message
    assert "0.0001 is allowed" in message
    assert "'text 3'" in message
    assert "Nothing was published" in message


@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_an_engine_that_gives_no_number_fails(junk: float) -> None:
    engine = AnsweringEngine(lambda row, _: [junk, 0, 0] if len(row.ids) == 4 else _right(row, _))
    with pytest.raises(CertificateError, match="'text 3'"):
        certify(engine, JUDGED, ROWS, _reference())


def test_an_engine_that_is_wrong_in_batches_only_fails() -> None:
    def wrong(row: TokenRow, shape: Shape) -> list[float]:
        return [x + 0.1 * (shape.batch > 1) for x in _right(row, shape)]

    with pytest.raises(CertificateError, match="in a batch"):
        certify(AnsweringEngine(wrong), JUDGED, ROWS, _reference())


def test_labels_turned_over_fail_even_within_the_error() -> None:
    rows = ROWS[:10]
    answers = [(1.0, 1.2) if i % 3 else (3.0, 0.0) for i in range(10)]
    reference = ReferenceFile(
        "t", "0", 32, tuple(ReferenceAnswer("x", None, logits) for logits in answers)
    )

    def turned(row: TokenRow, _: Shape) -> tuple[float, float]:
        first, second = answers[len(row.ids) - 1]
        return (first + 0.2, second - 0.1)

    judged = Judged("int8", replace(TASK, labels=("a", "b")), LIMITS)
    with pytest.raises(CertificateError, match=r"decides 40\.0% .* 95% must be.*--precision fp32"):
        certify(AnsweringEngine(turned), judged, rows, reference)


def test_near_ties_are_no_decision() -> None:
    answers = [(10.0, 0.0), (0.0, 10.0), *[(1.0, 1.01)] * 8]
    reference = ReferenceFile(
        "t", "0", 32, tuple(ReferenceAnswer("x", None, logits) for logits in answers)
    )
    judged = Judged("int8", replace(TASK, labels=("a", "b")), LIMITS)

    def turned(row: TokenRow, _: Shape) -> tuple[float, float]:
        return answers[len(row.ids) - 1] if len(row.ids) < 3 else (1.01, 1.0)

    engine = AnsweringEngine(turned)
    found = certify(engine, judged, ROWS[:10], reference)
    assert found.certificate.top1_agreement == pytest.approx(0.2)
    assert found.clear_agreement == 1


def test_samples_without_clear_decisions_certify_no_rounded_engine() -> None:
    answers = [(10.0, 0.0), *[(1.0, 1.01)] * 9]
    reference = ReferenceFile(
        "t", "0", 32, tuple(ReferenceAnswer("x", None, logits) for logits in answers)
    )
    judged = Judged("int8", replace(TASK, labels=("a", "b")), LIMITS)
    engine = AnsweringEngine(lambda row, _: answers[len(row.ids) - 1])
    with pytest.raises(CertificateError, match=r"10% of its decisions .* clear, .* 20% must"):
        certify(engine, judged, ROWS[:10], reference)
    certify(engine, replace(judged, precision="fp32"), ROWS[:10], reference)


@pytest.mark.parametrize(
    ("problem", "first", "step"),
    [
        ("regression", (60.0,), (1.0,)),  # from 60 to 79
        ("single_label", (40.0, 41.0), (0.0, -0.1)),  # the other label wins in half of them
        ("single_label", (5.0, -5.0), (0.1, -0.1)),  # one label always wins
        ("multi_label", (-8.0, 8.0), (0.1, 0.1)),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_an_engine_that_answers_every_text_alike_fails(
    problem: Problem, first: tuple[float, ...], step: tuple[float, ...], precision: Precision
) -> None:
    exact = np.array(first) + np.outer(np.arange(len(ROWS)), step)
    answers = tuple(ReferenceAnswer("x", None, tuple(row)) for row in exact.tolist())
    task = replace(TASK, labels=tuple("ab"[: len(first)]), problem=problem)
    middle = exact.mean(axis=0).tolist()
    reference = ReferenceFile("t", "0", 32, answers)
    with pytest.raises(CertificateError, match="off by"):
        certify(
            AnsweringEngine(lambda *_: middle), Judged(precision, task, LIMITS), ROWS, reference
        )
    listening = AnsweringEngine(lambda row, _: exact[len(row.ids) - 1].tolist())
    certify(listening, Judged(precision, task, LIMITS), ROWS, reference)


@pytest.mark.parametrize("num_samples", [1, 20])
def test_samples_that_the_original_answers_alike_certify_nothing(num_samples: int) -> None:
    answers = tuple(ReferenceAnswer("x", None, (1.0, 2.0, 3.0)) for _ in range(num_samples))
    engine = AnsweringEngine(lambda *_: [1, 2, 3])
    with pytest.raises(CertificateError, match=f"the {num_samples} samples prove nothing .* alike"):
        certify(engine, JUDGED, ROWS[:num_samples], ReferenceFile("t", "0", 32, answers))


def test_regression_has_no_agreement() -> None:
    rows = ROWS[:4]
    answers = tuple(ReferenceAnswer("x", None, (float(i),)) for i in range(4))
    judged = Judged("bf16", replace(TASK, labels=("score",), problem="regression"), LIMITS)
    engine = AnsweringEngine(lambda row, _: [len(row.ids) - 1 + 0.1])
    found = certify(engine, judged, rows, ReferenceFile("t", "0", 32, answers)).certificate
    assert found.top1_agreement is None
    assert found.max_abs_error == pytest.approx(0.1)
    assert found.min_cosine == pytest.approx(1, abs=0.01)


def test_many_labels_are_decided_one_by_one() -> None:
    exact = [[4.0, -4.0, 2.0, -2.0 - 3 * (n % 2)] for n in range(len(ROWS))]
    answers = tuple(ReferenceAnswer("x", None, tuple(row)) for row in exact)
    judged = Judged("int8", replace(TASK, problem="multi_label"), LIMITS)

    def turned(row: TokenRow, _: Shape) -> list[float]:
        logits = exact[len(row.ids) - 1]
        return [*logits[:3], logits[3] + 2.5 * (len(row.ids) == 1)]

    engine = AnsweringEngine(turned)
    with pytest.raises(CertificateError, match=r"off by 2\.5"):
        certify(engine, judged, ROWS, ReferenceFile("t", "0", 32, answers))
    engine = AnsweringEngine(lambda row, _: exact[len(row.ids) - 1])
    found = certify(engine, judged, ROWS, ReferenceFile("t", "0", 32, answers))
    assert found.certificate.top1_agreement == 1


def test_probes_are_spread_over_the_lengths_with_a_pair_among_them() -> None:
    found = certify(AnsweringEngine(_right), JUDGED, ROWS, _reference()).probes
    assert 4 <= len(found) <= 8
    assert found[0].text == "text 0"
    assert any(probe.text == "text 19" for probe in found)
    assert any(probe.text_pair == "more" for probe in found)
    for probe in found:
        expected = _right(ROWS[int(probe.text.split()[1])], Shape(1, 1))
        assert probe.logits == pytest.approx(expected, rel=1e-6)


def test_two_samples_are_enough() -> None:
    found = certify(AnsweringEngine(_right), JUDGED, ROWS[:2], _reference(ROWS[:2], ()))
    assert len(found.probes) == 2


def test_every_row_is_asked_alone_and_beside_longer_ones() -> None:
    engine = AnsweringEngine(_right)
    certify(engine, JUDGED, ROWS, _reference())
    alone = [shape for shape in engine.shapes if shape.batch == 1]
    assert [shape.length for shape in alone][: len(ROWS)] == list(range(1, 21))
    assert all(
        shape.batch <= LIMITS.max_batch and shape.num_tokens <= LIMITS.max_batch_tokens
        for shape in engine.shapes
    )


def test_a_model_that_padding_changes_is_found_out_and_batched_by_length() -> None:
    def padded(row: TokenRow, shape: Shape) -> list[float]:
        return [x + 0.01 * (shape.length - len(row.ids)) for x in _right(row, shape)]

    engine = AnsweringEngine(padded)
    found = check_padding(engine, ROWS, JUDGED)
    assert not found.is_invariant
    assert found.deviation > 0.01
    judged = Judged("fp32", replace(TASK, padding="equal_length"), LIMITS)
    rows = [*ROWS, *ROWS]
    certify(engine, judged, rows, _reference(rows))
    assert max(shape.batch for shape in engine.shapes[-30:]) == 2 + 1  # and an empty row
    with pytest.raises(CertificateError):
        certify(engine, JUDGED, ROWS, _reference())


@pytest.mark.parametrize(
    ("rows", "limits"),
    [
        (ROWS, replace(LIMITS, max_batch=1)),
        (ROWS[3:4], LIMITS),
        ([ROWS[3]] * 10, LIMITS),
        (ROWS[-2:], replace(LIMITS, max_tokens=20)),
    ],
)
def test_padding_is_tried_whatever_the_samples_and_the_limits(
    rows: Sequence[Encoding], limits: Limits
) -> None:
    def padded(row: TokenRow, shape: Shape) -> list[float]:
        return [x + 0.01 * (shape.length > len(row.ids)) for x in _right(row, shape)]

    assert not check_padding(
        AnsweringEngine(padded), rows, replace(JUDGED, limits=limits)
    ).is_invariant


def test_a_model_that_an_empty_row_changes_is_found_out() -> None:
    class Engine(AnsweringEngine):
        def start(self, rows: Sequence[TokenRow], shape: Shape) -> None:
            super().start(rows, shape)
            self._logits += 0.01 * (shape.batch > len(rows))

    assert not check_padding(Engine(_right), ROWS, JUDGED).is_invariant
    with pytest.raises(CertificateError, match="in a batch"):
        certify(Engine(_right), JUDGED, ROWS, _reference())


def test_every_padded_shape_is_within_the_limits() -> None:
    engine = AnsweringEngine(_right)
    check_padding(engine, ROWS, replace(JUDGED, limits=replace(LIMITS, max_batch_tokens=40)))
    assert max(shape.length for shape in engine.shapes) == LIMITS.max_tokens
    assert max(shape.num_tokens for shape in engine.shapes) <= 40


def test_samples_that_leave_nothing_to_pad_are_refused() -> None:
    judged = replace(JUDGED, limits=replace(LIMITS, max_tokens=4))
    with pytest.raises(CertificateError, match="fills a row of 4 tokens"):
        check_padding(AnsweringEngine(_right), ROWS[3:4], judged)


def test_a_model_that_padding_leaves_alone_is_invariant() -> None:
    assert check_padding(AnsweringEngine(_right), ROWS, JUDGED).is_invariant


def test_the_reference_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("version") / "reference.json"
    write_reference(_reference(), file)
    assert read_reference(file) == _reference()
