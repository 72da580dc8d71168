"""Runs a decoder on all prompts, beside each other and alone, and judges it by the reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from enginehouse_builder.errors import CertificateError
from enginehouse_builder.manifest import GenerateCertificate, TokenProbe
from enginehouse_server.engine.decoder import (
    CachePrecision,
    DecoderEngine,
    DecoderPrecision,
)

from .continuations import Continuation, ContinuationFile
from .joint import Work, run_jointly, shareable_tokens
from .scores import score
from .token_figures import Deviation, TokenFigures, figures_of
from .token_probes import token_probes
from .tolerance import TOKEN_TIE, TokenTolerance, Usual, token_tolerance

__all__ = ["CertifiedDecoder", "JudgedDecoder", "certify_decoder"]

_NUM_TWINS = 2


@dataclass(frozen=True, slots=True)
class JudgedDecoder:
    """What an engine is judged as.

    Attributes:
        precision: Of its weights, and of its arithmetic where that is not wider.
        cache_precision: Of its cached keys and values.
        is_mixture: Whether its tokens choose among experts.
        stands_for: What it is run in place of, in words; empty where it is the engine itself.
    """

    precision: DecoderPrecision
    cache_precision: CachePrecision
    is_mixture: bool = False
    stands_for: str = ""


@dataclass(frozen=True, slots=True)
class CertifiedDecoder:
    """An engine that passed.

    Attributes:
        certificate: Its figures.
        clear_agreement: Share of likeliest tokens that stay, near ties left out.
        probes: Prompts of varied length with what it makes of them.
        runtime_version: Of its runtime.
        device: What it ran on.
    """

    certificate: GenerateCertificate
    clear_agreement: float
    probes: tuple[TokenProbe, ...]
    runtime_version: str
    device: str


def certify_decoder(
    engine: DecoderEngine, judged: JudgedDecoder, reference: ContinuationFile
) -> CertifiedDecoder:
    """Certifies a decoder.

    Args:
        engine: The engine, exactly as it will be served.
        judged: What it is judged as.
        reference: The original's continuations.

    Raises:
        CertificateError: It goes on otherwise than the reference does, by more than its precision
            allows.
    """
    texts = reference.continuations
    tolerance = token_tolerance(
        judged.precision, judged.cache_precision, is_mixture=judged.is_mixture
    )
    with np.errstate(all="ignore"):  # what is no number shows in the figures
        trial = _try(engine, texts, tolerance.near)
    found = trial.figures
    runtime = f"{engine.backend} {engine.runtime_version}{judged.stands_for}"
    if fault := _fault(trial, tolerance):
        raise CertificateError(
            f"the {judged.precision} engine ({runtime}, cache in {judged.cache_precision}) does "
            f"not go on as the original: {fault}. Nothing was published. {_remedy(judged)}"
        )
    certificate = GenerateCertificate(
        reference=reference.reference,
        runtime=runtime,
        samples_sha256=reference.samples_sha256,
        num_prompts=len(texts),
        num_tokens=found.num_tokens,
        longest_prompt=max(len(text.prompt) for text in texts),
        token_agreement=found.token_agreement,
        top1_agreement=found.top1_agreement,
        max_abs_error=found.error.size,
        mean_kl=found.mean_kl,
        perplexity=found.perplexity,
        reference_perplexity=found.reference_perplexity,
        scale=found.scale,
        tolerance=tolerance.error,
    )
    return CertifiedDecoder(
        certificate=certificate,
        clear_agreement=found.clear_agreement,
        probes=token_probes(engine, [text.prompt for text in texts]),
        runtime_version=engine.runtime_version,
        device=engine.device,
    )


class _Trial(NamedTuple):
    """What came out.

    Attributes:
        texts: The original's, those of twins twice.
        ran: The engine's own, beside each other.
        figures: Of the two.
    """

    texts: Sequence[Continuation]
    ran: Sequence[Sequence[int]]
    figures: TokenFigures


def _try(engine: DecoderEngine, texts: Sequence[Continuation], near: float) -> _Trial:
    works = _works(engine, texts)
    ran = run_jointly(engine, works)
    twins = [texts[work.twin_of] for work in works if work.twin_of is not None]
    texts = [*texts, *twins]
    scores = [score(engine, text, tokens) for text, tokens in zip(texts, ran, strict=True)]
    return _Trial(texts, ran, figures_of(texts, ran, scores, TOKEN_TIE, near))


def _works(engine: DecoderEngine, texts: Sequence[Continuation]) -> list[Work]:
    """Every prompt once, and twins of the longest usual ones, which begin with their blocks."""
    works = [Work(text.prompt, len(text.tokens)) for text in texts]
    usual = [i for i, t in enumerate(texts) if shareable_tokens(engine, len(t.prompt)) > 0]
    # A twin copies from a slot that is kept for it; one must be left for all others to run in.
    limits = engine.limits
    most = _NUM_TWINS if limits.shares_blocks else min(_NUM_TWINS, limits.num_blocks - 1)
    usual.sort(key=lambda i: (len(texts[i].prompt_losses), i), reverse=True)
    return works + [works[i]._replace(twin_of=i) for i in usual[:most]]


def _fault(trial: _Trial, tolerance: TokenTolerance) -> str:
    """What the engine does not keep, in words; empty if it keeps everything."""
    found = trial.figures
    scale = found.scale
    if not found.error.size <= tolerance.error * scale:  # also when it is not a number
        return (
            f"a logit is off by {found.error.size:.3g}, which is {found.error.size / scale:.2g} of "
            f"what logits are spread by ({scale:.3g}); {tolerance.error:g} is allowed. "
            f"Furthest off {_where(found.error, trial)}"
        )
    if not found.mixing.size <= tolerance.mixing * scale:
        return (
            "it chooses otherwise beside other sequences than alone: a token whose logit is "
            f"{found.mixing.size:.3g} less than the best, which is {found.mixing.size / scale:.2g} "
            f"of what logits are spread by; {tolerance.mixing:g} is allowed. "
            f"{_chosen(found.mixing, trial)}"
        )
    if tolerance.is_exact and not found.choice.size <= TOKEN_TIE * scale:
        return (
            f"{found.token_agreement:.1%} of {found.num_tokens} greedy tokens are the original's, "
            f"and all must be. {_chosen(found.choice, trial)}, though the original's logits of the "
            f"two are {found.choice.size:.3g} apart"
        )
    return _usual_fault(found, tolerance.usual) or _mean_fault(found, tolerance)


def _usual_fault(found: TokenFigures, usual: Usual | None) -> str:
    """What more places than a few do not keep, of a mixture of experts."""
    if usual is None:
        return ""
    for sizes, bound, what in (
        (found.errors, usual.error, "a logit is off"),
        (found.behind, usual.mixing, "a token chosen beside other sequences is behind another"),
    ):
        share = float((sizes > bound * found.scale).mean())
        if share > usual.others:
            return (
                f"at {share:.1%} of {len(sizes)} places {what} by more than {bound:g} of what "
                f"logits are spread by; {usual.others:.0%} of them may, where tokens go to other "
                "experts than the original sends them to"
            )
    return ""


def _mean_fault(found: TokenFigures, tolerance: TokenTolerance) -> str:
    ratio = found.perplexity / found.reference_perplexity
    # Of the few tokens after the long prompt one may be lost, where any may.
    one = 0.0 if tolerance.is_exact else 1 / max(found.long_places, 1)
    after_long = f"after the long prompt alone ({found.long_places} tokens)"
    bounds = (
        (
            found.clear_agreement >= tolerance.agreement,
            f"it finds {found.clear_agreement:.1%} of the tokens likeliest that the original does, "
            f"near ties aside; {tolerance.agreement:.0%} must be",
        ),
        (
            found.mean_kl <= tolerance.kl,
            f"its distributions are {found.mean_kl:.3g} nats off on average; "
            f"{tolerance.kl:g} are allowed",
        ),
        (
            found.long_agreement + one >= tolerance.agreement,
            f"{after_long} it finds {found.long_agreement:.1%} of the tokens likeliest that the "
            f"original does, near ties aside; {tolerance.agreement:.0%} must be, but for one",
        ),
        (
            found.long_kl <= tolerance.kl,
            f"{after_long} its distributions are {found.long_kl:.3g} nats off on average; "
            f"{tolerance.kl:g} are allowed",
        ),
        (
            ratio <= tolerance.perplexity,
            f"its perplexity on the samples is {found.perplexity:.4g}, {ratio:.3f} times the "
            f"original's {found.reference_perplexity:.4g}; {tolerance.perplexity:g} is allowed",
        ),
    )
    return next((fault for is_kept, fault in bounds if not is_kept), "")


def _where(worst: Deviation, trial: _Trial) -> str:
    text = trial.texts[worst.text]
    return (
        f"at token {worst.place + 1} after {len(text.prompt)} tokens of {text.text[:60]!r} "
        f"(prompt {worst.text + 1})"
    )


def _chosen(worst: Deviation, trial: _Trial) -> str:
    ours = trial.ran[worst.text][worst.place]
    theirs = trial.texts[worst.text].tokens[worst.place]
    return f"It is {_where(worst, trial)}: it gives token {ours}, the original {theirs}"


def _remedy(judged: JudgedDecoder) -> str:
    if (judged.precision, judged.cache_precision) == ("fp32", "fp32"):
        return (
            "The model computes something that does not survive the conversion: it cannot be "
            "served as it is"
        )
    if judged.precision == "int4":
        return "Try --precision int8"
    return "Try --precision fp32" + " --cache-precision fp32" * (judged.precision == "fp32")
