"""Runs a decoder on all prompts, beside each other and alone, and judges it by the reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from enginehouse_builder.errors import CertificateError
from enginehouse_builder.manifest import GenerateCertificate, TokenProbe
from enginehouse_server.engine.decoder import (
    CachePrecision,
    DecoderEngine,
    DecoderPrecision,
    StepItem,
)

from .continuations import Continuation, ContinuationFile
from .joint import Work, run_jointly, shareable_tokens
from .scores import score
from .token_figures import Deviation, TokenFigures, figures_of
from .tolerance import TOKEN_TIE, TokenTolerance, token_tolerance

__all__ = ["CertifiedDecoder", "JudgedDecoder", "certify_decoder"]

_NUM_TWINS = 2
_NUM_PROBES = 4
_PROBE_TOKENS = 8
_PROBE_TOP = 5
_MAX_PROBE = 128  # tokens of its prompt


@dataclass(frozen=True, slots=True)
class JudgedDecoder:
    """What an engine is judged as.

    Attributes:
        precision: Of its weights, and of its arithmetic where that is not wider.
        cache_precision: Of its cached keys and values.
    """

    precision: DecoderPrecision
    cache_precision: CachePrecision


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
    tolerance = token_tolerance(judged.precision, judged.cache_precision)
    works = _works(engine, texts)
    ran = run_jointly(engine, works)
    twins = [work.twin_of for work in works if work.twin_of is not None]
    compared = [*texts, *(texts[i] for i in twins)]
    scores = [score(engine, text, tokens) for text, tokens in zip(compared, ran, strict=True)]
    found = figures_of(compared, ran, scores, TOKEN_TIE, tolerance.near)
    runtime = f"{engine.backend} {engine.runtime_version}"
    if fault := _fault(found, tolerance, compared, ran):
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
    probes = tuple(_probe(engine, prompt) for prompt in _probe_prompts(texts))
    return CertifiedDecoder(
        certificate, found.clear_agreement, probes, engine.runtime_version, engine.device
    )


def _works(engine: DecoderEngine, texts: Sequence[Continuation]) -> list[Work]:
    """Every prompt once, and twins of the longest usual ones, which begin with their blocks."""
    works = [Work(text.prompt, len(text.tokens)) for text in texts]
    usual = [i for i, t in enumerate(texts) if shareable_tokens(engine, len(t.prompt)) > 0]
    usual.sort(key=lambda i: (len(texts[i].prompt_losses), i), reverse=True)
    return works + [works[i]._replace(twin_of=i) for i in usual[:_NUM_TWINS]]


def _fault(
    found: TokenFigures,
    tolerance: TokenTolerance,
    texts: Sequence[Continuation],
    ran: Sequence[Sequence[int]],
) -> str:
    scale = found.scale
    if not found.error.size <= tolerance.error * scale:  # also when it is not a number
        return (
            f"a logit is off by {found.error.size:.3g}, which is {found.error.size / scale:.2g} of "
            f"the largest ({scale:.3g}); {tolerance.error:g} is allowed. "
            f"Furthest off {_where(found.error, texts)}"
        )
    if not found.mixing.size <= tolerance.mixing * scale:
        return (
            "it chooses otherwise beside other sequences than alone: a token whose logit is "
            f"{found.mixing.size:.3g} less than the best, which is {found.mixing.size / scale:.2g} "
            f"of the largest; {tolerance.mixing:g} is allowed. {_chosen(found.mixing, texts, ran)}"
        )
    if tolerance.is_exact and not found.choice.size <= TOKEN_TIE * scale:
        return (
            f"{found.token_agreement:.1%} of {found.num_tokens} greedy tokens are the original's, "
            f"and all must be. {_chosen(found.choice, texts, ran)}, though the original's logits "
            f"of the two are {found.choice.size:.3g} apart"
        )
    ratio = found.perplexity / found.reference_perplexity
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
            ratio <= tolerance.perplexity,
            f"its perplexity on the samples is {found.perplexity:.4g}, {ratio:.3f} times the "
            f"original's {found.reference_perplexity:.4g}; {tolerance.perplexity:g} is allowed",
        ),
    )
    return next((fault for is_kept, fault in bounds if not is_kept), "")


def _where(worst: Deviation, texts: Sequence[Continuation]) -> str:
    text = texts[worst.text]
    return (
        f"at token {worst.place + 1} after {len(text.prompt)} tokens of {text.text[:60]!r} "
        f"(prompt {worst.text + 1})"
    )


def _chosen(worst: Deviation, texts: Sequence[Continuation], ran: Sequence[Sequence[int]]) -> str:
    ours, theirs = ran[worst.text][worst.place], texts[worst.text].tokens[worst.place]
    return f"It is {_where(worst, texts)}: it gives token {ours}, the original {theirs}"


def _remedy(judged: JudgedDecoder) -> str:
    if judged.precision == "fp32" and judged.cache_precision == "fp32":
        return (
            "The model computes something that does not survive the conversion: it cannot be "
            "served as it is"
        )
    if judged.cache_precision != "fp32":
        return "Try --cache-precision fp32, or --precision fp32"
    return f"Try --precision {'int8' if judged.precision == 'int4' else 'fp32'}"


def _probe_prompts(texts: Sequence[Continuation]) -> list[tuple[int, ...]]:
    """Prompts spread over the lengths; a long one is cut."""
    prompts = sorted({text.prompt[:_MAX_PROBE] for text in texts}, key=lambda p: (len(p), p))
    places = np.linspace(0, len(prompts) - 1, _NUM_PROBES).round().astype(int)
    return [prompts[place] for place in dict.fromkeys(places.tolist())]


def _probe(engine: DecoderEngine, prompt: tuple[int, ...]) -> TokenProbe:
    limits = engine.limits
    num_new = min(_PROBE_TOKENS, limits.max_tokens - len(prompt))
    blocks = range(-(-(len(prompt) + num_new) // limits.block_size))
    top: list[tuple[int, float]] = []
    tokens: list[int] = []
    ends = range(0, len(prompt) + limits.max_step_tokens, limits.max_step_tokens)
    pieces = [(a, prompt[a:b]) for a, b in pairwise(ends) if prompt[a:b]]
    for i in range(num_new):
        for start, piece in pieces:
            is_last = start + len(piece) == len(prompt) + i
            engine.start([StepItem(blocks, start, piece, int(is_last))])
            logits = engine.wait()
        if i == 0:
            order = np.argsort(-logits[0], kind="stable")[:_PROBE_TOP]
            top = [(int(token), float(logits[0, token])) for token in order]
        tokens.append(int(logits[0].argmax()))
        pieces = [(len(prompt) + i, (tokens[-1],))]
    return TokenProbe(prompt, tuple(tokens), tuple(top))
