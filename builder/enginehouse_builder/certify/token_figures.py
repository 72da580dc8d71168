"""The figures of an engine's tokens and logits beside the original's.

Errors are judged by how far the original's logits are spread: the farthest of a likely token's from
the median of its place. What is added to all logits of a place changes no probability, and a model
may put all of them far from 0; judged by the largest, it could be as far off as it likes. The
median, not the mean: tokens that are never to come may have any logit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .continuations import Continuation
from .scores import Scores

__all__ = ["Deviation", "TokenFigures", "figures_of", "first_difference", "spread_of"]

_LEAST_SHARE = 1e-12  # a probability below is taken for it: its logarithm must exist


class Deviation(NamedTuple):
    """Where something is furthest from what it should be.

    Attributes:
        size: How far, in logits.
        text: Index of the continuation.
        place: Index of its token.
    """

    size: float
    text: int
    place: int


class TokenFigures(NamedTuple):
    """How far an engine is from the original; where it gave no number, a figure is none either.

    Attributes:
        num_tokens: Greedy tokens that were compared.
        token_agreement: Share of them that are the original's.
        top1_agreement: Share of places with the same likeliest token.
        clear_agreement: The same without places where the original itself made no clear choice.
        mean_kl: Mean divergence of the next token's distribution, nats.
        long_places: Places after the long prompt; 0 where there is none.
        long_agreement: `clear_agreement` there alone: it is a small part of all.
        long_kl: `mean_kl` there alone.
        perplexity: Of the engine on the prompts.
        reference_perplexity: Of the original.
        scale: `spread_of` the original.
        error: Greatest error of a logit.
        choice: Of all first tokens that differ from the original's, the greatest distance between
            the original's logits of the two.
        mixing: Greatest distance by which a token chosen beside other sequences is behind the one
            that the engine prefers alone.
        errors: Greatest error of a logit at each place.
        behind: As `mixing`, of each place where it can be told.
    """

    num_tokens: int
    token_agreement: float
    top1_agreement: float
    clear_agreement: float
    mean_kl: float
    long_places: int
    long_agreement: float
    long_kl: float
    perplexity: float
    reference_perplexity: float
    scale: float
    error: Deviation
    choice: Deviation
    mixing: Deviation
    errors: NDArray[np.float64]
    behind: NDArray[np.float64]


def figures_of(
    texts: Sequence[Continuation],
    joint: Sequence[Sequence[int]],
    scores: Sequence[Scores],
    tie: float,
    near: float,
) -> TokenFigures:
    """Compares what an engine did with what the original did.

    Args:
        texts: The original's.
        joint: The engine's greedy tokens, for each text, beside other sequences.
        scores: What it makes of the original's own text, alone.
        tie: Share of the spread: two logits that are closer are the same number but for rounding.
        near: Share of the spread: between two logits that are closer no clear choice was made.
    """
    top = [np.array(text.top_logits) for text in texts]
    scale = spread_of(texts)
    agreed, compared, choice = _agreement(texts, joint, tie * scale)
    same = [s.best == np.array(t.tokens) for s, t in zip(scores, texts, strict=True)]
    kept = [found | (_gaps(t) <= near * scale) for found, t in zip(same, texts, strict=True)]
    kl = [_kl(t, s) for t, s in zip(texts, scores, strict=True)]
    longs = [i for i, text in enumerate(texts) if text.is_long]
    losses = np.concatenate([s.prompt_losses for s in scores])
    errors = [np.abs(s.top_logits - t).max(axis=1) for s, t in zip(scores, top, strict=True)]
    behind = _behind(texts, joint, scores)
    return TokenFigures(
        num_tokens=compared,
        token_agreement=agreed / max(compared, 1),
        top1_agreement=float(np.concatenate(same).mean()),
        clear_agreement=float(np.concatenate(kept).mean()),
        mean_kl=float(np.concatenate(kl).mean()),
        long_places=sum(len(kept[i]) for i in longs),
        long_agreement=float(np.concatenate([kept[i] for i in longs]).mean()) if longs else 1.0,
        long_kl=float(np.concatenate([kl[i] for i in longs]).mean()) if longs else 0.0,
        perplexity=_perplexity(losses),
        reference_perplexity=_perplexity(np.concatenate([t.prompt_losses for t in texts])),
        scale=scale,
        error=_worst(errors),
        choice=choice,
        mixing=_worst(behind),
        errors=np.concatenate(errors),
        behind=np.concatenate(behind),
    )


def spread_of(texts: Sequence[Continuation]) -> float:
    """Farthest distance of a likely token's logit from the median of its place, never quite 0.

    Without medians, which earlier builds did not keep, it is the largest absolute logit.
    """
    most = 1e-6
    for text in texts:
        top = np.array(text.top_logits)
        if text.medians:
            top = top - np.array(text.medians)[:, None]
        most = max(most, float(np.abs(top).max()))
    return most


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Index of the first token that differs, or how many there are."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(theirs))


def _agreement(
    texts: Sequence[Continuation], joint: Sequence[Sequence[int]], tie: float
) -> tuple[int, int, Deviation]:
    """Tokens that agree, tokens that count, and the clearest choice that differs.

    A sequence agrees up to the first token that differs. Where the original's own logits of the two
    are the same but for rounding, either is right; what follows has nothing to do with the
    original's text and does not count. Otherwise all that follows counts as lost.
    """
    agreed = compared = 0
    worst = Deviation(0.0, 0, 0)
    for i, (text, tokens) in enumerate(zip(texts, joint, strict=True)):
        place = first_difference(tokens, text.tokens)
        agreed += place
        if place == len(text.tokens):
            compared += place
            continue
        ids, logits = text.top_ids[place], text.top_logits[place]
        # One that is not among the likeliest is further off than any of them.
        other = logits[ids.index(tokens[place])] if tokens[place] in ids else logits[-1]
        gap = logits[0] - other
        compared += place if gap <= tie else len(text.tokens)
        worst = max(worst, Deviation(gap, i, place))
    return agreed, compared, worst


def _behind(
    texts: Sequence[Continuation], joint: Sequence[Sequence[int]], scores: Sequence[Scores]
) -> list[NDArray[np.float64]]:
    """Up to a sequence's first difference it has the same tokens before it as alone."""
    behind = []
    for text, tokens, found in zip(texts, joint, scores, strict=True):
        last = first_difference(tokens, text.tokens) + 1
        behind.append((found.best_logits - found.joint_logits)[:last])
    return behind


def _worst(sizes: Sequence[NDArray[np.float64]]) -> Deviation:
    found = []
    for i, of_text in enumerate(sizes):
        place = int(np.nan_to_num(of_text, nan=np.inf).argmax())
        found.append(Deviation(float(of_text[place]), i, place))
    return max(found, key=lambda d: np.inf if np.isnan(d.size) else d.size)


def _gaps(text: Continuation) -> NDArray[np.float64]:
    """How far the original's best token is ahead of the next, at each place."""
    logits = np.array(text.top_logits)
    if logits.shape[1] == 1:
        return np.full(len(logits), np.inf)
    gaps: NDArray[np.float64] = logits[:, 0] - logits[:, 1]
    return gaps


def _kl(text: Continuation, scores: Scores) -> NDArray[np.float64]:
    """Kullback-Leibler divergence at each place, of the likeliest tokens and all others as one.

    Taking tokens together can only lower it (the data processing inequality); what the others have
    together is a small part.
    """
    ours = _shares(scores.top_logits, scores.log_sums)
    theirs = _shares(np.array(text.top_logits), np.array(text.log_sums))
    divergence: NDArray[np.float64] = (theirs * np.log(theirs / ours)).sum(axis=1)
    return divergence


def _shares(logits: NDArray[np.float64], log_sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of the likeliest tokens and, last, of all others, `[tokens, top + 1]`."""
    shares = np.exp(logits - log_sums[:, None])
    others = 1 - shares.sum(axis=1, keepdims=True)
    found: NDArray[np.float64] = np.maximum(np.concatenate([shares, others], axis=1), _LEAST_SHARE)
    return found


def _perplexity(losses: NDArray[np.float64]) -> float:
    return float(np.exp(losses.mean())) if len(losses) else 1.0
