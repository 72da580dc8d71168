"""Runs an engine on all samples, alone and in batches, and judges it by the reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginehouse_builder.errors import CertificateError
from enginehouse_builder.manifest import Bucket, Certificate, ClassifyTask, Limits, Probe
from enginehouse_server.engine.base import EncoderEngine, Logits, Precision, TokenRow

from .answers import answer_alone, answer_batches, equal_length_batches, mixed_batches
from .compare import Comparison, compare
from .reference_file import ReferenceAnswer, ReferenceFile
from .served import ServedLane
from .tolerance import TOLERANCES, Tolerance

__all__ = ["Certified", "Judged", "certify"]

_NUM_PROBES = 6
_MAX_PROBE_CHARACTERS = 2000
_LEAST_SPREAD = 1e-3  # of the largest logit; fp32 rounds it by a hundredth of that


@dataclass(frozen=True, slots=True)
class Judged:
    """What an engine is judged as.

    Attributes:
        precision: Its arithmetic.
        task: What its logits mean, and which texts may share a batch.
        limits: What a batch may hold.
        stands_for: What it is run in place of, in words; empty where it is the engine itself.
        buckets: The only shapes that it takes; none where it takes any.
    """

    precision: Precision
    task: ClassifyTask
    limits: Limits
    stands_for: str = ""
    buckets: tuple[Bucket, ...] = ()


@dataclass(frozen=True, slots=True)
class Certified:
    """An engine that passed.

    Attributes:
        certificate: Its figures.
        clear_agreement: Share of decisions that stay, near ties left out; None for regression.
        probes: Inputs of varied length with its own logits.
        runtime_version: Of its runtime.
        device: What it ran on.
    """

    certificate: Certificate
    clear_agreement: float | None
    probes: tuple[Probe, ...]
    runtime_version: str
    device: str


def certify(
    engine: EncoderEngine, judged: Judged, rows: Sequence[TokenRow], reference: ReferenceFile
) -> Certified:
    """Certifies an engine.

    Args:
        engine: The engine, exactly as it will be served; its first lane is used.
        judged: What it is judged as.
        rows: Tokens of the reference's inputs, cut to `reference.max_tokens`.
        reference: The original's answers.

    Raises:
        CertificateError: Its answers are further from the reference's than its precision allows,
            or the samples are such that any engine's would be near.
    """
    exact = np.array([answer.logits for answer in reference.answers], np.float32)
    _check_samples(exact, judged)
    lane = ServedLane(engine.lanes[0], judged.buckets) if judged.buckets else engine.lanes[0]
    is_invariant = judged.task.padding == "invariant"
    batches = mixed_batches if is_invariant else equal_length_batches
    alone = answer_alone(lane, rows)
    batched = answer_batches(lane, rows, batches(rows, judged.limits), judged.limits)
    runtime = f"{engine.backend} {engine.runtime_version}{judged.stands_for}"
    found = compare(
        np.concatenate([alone, batched]), np.concatenate([exact, exact]), judged.task.problem
    )
    tolerance = TOLERANCES[judged.precision]
    if fault := _fault(found, tolerance):
        logits = [*alone, *batched][found.worst]
        answer = reference.answers[found.worst % len(rows)]
        way = "alone" if found.worst < len(rows) else "in a batch"
        raise CertificateError(
            f"the {judged.precision} engine ({runtime}) does not answer as the original: {fault}. "
            f"Furthest off, {way}: {_shown(answer)}, where it gives {_figures(logits)} and the "
            f"original {_figures(answer.logits)}. Nothing was published. {_remedy(judged)}"
        )
    certificate = Certificate(
        reference=reference.reference,
        runtime=runtime,
        samples_sha256=reference.samples_sha256,
        num_samples=len(rows),
        max_abs_error=found.max_abs_error,
        mean_abs_error=found.mean_abs_error,
        min_cosine=found.min_cosine,
        top1_agreement=found.agreement,
        scale=found.scale,
        tolerance=tolerance.error,
    )
    probes = _probes(rows, reference.answers, alone)
    return Certified(
        certificate, found.clear_agreement, probes, engine.runtime_version, engine.device
    )


def _check_samples(exact: Logits, judged: Judged) -> None:
    """Refuses samples on which an engine that is wrong would look right."""
    found, largest = compare(exact, exact, judged.task.problem), float(np.abs(exact).max())
    least = TOLERANCES[judged.precision].clear
    if found.scale <= _LEAST_SPREAD * largest:
        fault = (
            f"it answers them alike: its logits, up to {largest:.3g}, vary by {found.scale:.2g}. "
            "Give --samples that it tells apart, two at least"
        )
    elif found.clear_share is not None and found.clear_share < least:
        fault = (
            f"{found.clear_share:.0%} of its decisions on them are clear, and for "
            f"{judged.precision} {least:.0%} must be. Give --samples that are like your own texts, "
            "or --precision fp32"
        )
    else:
        return
    raise CertificateError(
        f"the {len(exact)} samples prove nothing of an engine of this model: {fault}"
    )


def _fault(found: Comparison, tolerance: Tolerance) -> str:
    error = found.max_abs_error / found.scale
    if not error <= tolerance.error:  # also when it is not a number
        return (
            f"a logit is off by {found.max_abs_error:.3g}, which is {error:.2g} of what they vary "
            f"by over the samples ({found.scale:.3g}); {tolerance.error:g} is allowed"
        )
    if found.clear_agreement is not None and found.clear_agreement < tolerance.agreement:
        return (
            f"it decides {found.clear_agreement:.1%} of the samples alike, near ties aside; "
            f"{tolerance.agreement:.0%} must be"
        )
    return ""


def _remedy(judged: Judged) -> str:
    if judged.precision == "fp32":
        return (
            "The model computes something that does not survive the conversion: it cannot be "
            "served as it is"
        )
    samples = " or samples that are like your own texts (--samples)"
    return "Try --precision fp32" + samples * (judged.precision == "int8")


def _shown(answer: ReferenceAnswer) -> str:
    pair = "" if answer.text_pair is None else f" with {answer.text_pair[:40]!r}"
    return f"{answer.text[:60]!r}{pair}"


def _figures(logits: Sequence[float] | Logits) -> str:
    more = ", …" if len(logits) > 8 else ""
    return "[" + ", ".join(f"{float(x):.3g}" for x in logits[:8]) + more + "]"


def _probes(
    rows: Sequence[TokenRow], answers: Sequence[ReferenceAnswer], logits: Logits
) -> tuple[Probe, ...]:
    """Inputs spread over the lengths, a pair among them if there is one."""
    usable = [i for i, a in enumerate(answers) if _characters(a) <= _MAX_PROBE_CHARACTERS]
    order = sorted(usable or [0], key=lambda i: (len(rows[i].ids), i))
    places = np.linspace(0, len(order) - 1, _NUM_PROBES).round().astype(int)
    chosen = [order[place] for place in dict.fromkeys(places.tolist())]
    pairs = [i for i in order if answers[i].text_pair is not None]
    if pairs and not set(pairs) & set(chosen):
        chosen.append(pairs[len(pairs) // 2])
    return tuple(
        Probe(answers[i].text, answers[i].text_pair, tuple(float(x) for x in logits[i]))
        for i in chosen
    )


def _characters(answer: ReferenceAnswer) -> int:
    return len(answer.text) + len(answer.text_pair or "")
