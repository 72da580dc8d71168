"""How far an engine's answers may be from the original's, by precision."""

from typing import NamedTuple

from enginehouse_server.engine.base import Precision
from enginehouse_server.engine.decoder import CachePrecision, DecoderPrecision

__all__ = ["NEAR_TIE", "TOKEN_TIE", "TOLERANCES", "TokenTolerance", "Tolerance", "token_tolerance"]

# Share of what logits vary by. Labels closer than that in the original are no decision to keep: on
# texts that fit no label, the best two are often as close, and any rounding turns them over.
NEAR_TIE = 0.05


class Tolerance(NamedTuple):
    """What a precision must keep.

    Attributes:
        error: Greatest error of a logit, by how far the reference's vary over the samples. An
            engine that does not listen is off by 0.5 at least.
        agreement: Least share of decisions that stay, near ties left out.
        clear: Least share of decisions that are no near ties, or else agreement says nothing.
    """

    error: float
    agreement: float
    clear: float


TOLERANCES: dict[Precision, Tolerance] = {
    # Another order of summation gives 3e-6 at most in six layers, more the deeper. A GELU of
    # the other kind shows as 1e-3, a wrong mask or epsilon as 1e-2 or more. It is proof enough
    # without any clear decision.
    "fp32": Tolerance(1e-4, 1.0, 0.0),
    # A rounding of 2^-11 an operation, in tf32 of products alone: a quarter of bf16's.
    "tf32": Tolerance(0.02, 0.99, 0.1),
    "fp16": Tolerance(0.02, 0.99, 0.1),
    # A rounding of 2^-9 an operation: 0.01 measured for six layers, and it grows with depth.
    "bf16": Tolerance(0.1, 0.97, 0.2),
    # Each layer's output is off by up to 2 %: 0.08 to 0.19 measured for six layers. A lost
    # outlier channel or a text unlike all samples gives 0.5 and more.
    "int8": Tolerance(0.25, 0.95, 0.2),
    # Three bits of mantissa against int8's seven, but a range that needs no common step.
    "fp8": Tolerance(0.35, 0.95, 0.2),
}

# Share of the spread. Two tokens of the original that are closer are tied: another order of
# summation, which is all that a correct engine does otherwise in fp32, may turn them over.
TOKEN_TIE = 1e-4


class Usual(NamedTuple):
    """What the places of a mixture of experts keep whose tokens went where they should.

    Attributes:
        error: Greatest error of a logit.
        mixing: As of any place.
        others: Greatest share of places that are beyond one of these; each is counted for itself.
    """

    error: float
    mixing: float
    others: float


class TokenTolerance(NamedTuple):
    """What a decoder must keep. Differences of logits are by the reference's spread.

    Attributes:
        error: Greatest error of a logit.
        near: Tokens closer than that in the reference are no decision to keep.
        mixing: How far a token chosen beside other sequences may be behind the one chosen alone.
        agreement: Least share of clear decisions that stay, given the reference's own text.
        kl: Greatest mean divergence of the next token's distribution, nats.
        perplexity: Greatest ratio of the perplexity to the reference's.
        is_exact: Whether every greedy token must be the reference's, ties aside.
        usual: What all places but a few keep, where `error` and `mixing` are for those few.
    """

    error: float
    near: float
    mixing: float
    agreement: float
    kl: float
    perplexity: float
    is_exact: bool
    usual: "Usual | None" = None


_TOKEN_TOLERANCES: dict[DecoderPrecision, TokenTolerance] = {
    # 1e-6 measured in two layers, and it grows with depth; a wrong window or position gives 0.1.
    "fp32": TokenTolerance(1e-4, 1e-4, 1e-4, 1.0, 1e-4, 1.001, True),
    "tf32": TokenTolerance(0.02, 0.01, 0.01, 0.99, 2e-3, 1.005, False),
    "fp16": TokenTolerance(0.02, 0.01, 0.01, 0.99, 2e-3, 1.005, False),
    # 0.01 to 0.04 measured of an error, 3e-4 nats; steps of another size round otherwise: 0.015.
    "bf16": TokenTolerance(0.1, 0.05, 0.05, 0.97, 0.02, 1.03, False),
    # 0.02 to 0.08 measured of an error, 7e-4 nats.
    "int8": TokenTolerance(0.15, 0.05, 0.02, 0.95, 0.05, 1.05, False),
    # Random weights, which have no structure to keep, lose most: an error of 0.6, 0.02 nats, 86 %
    # of the clear decisions kept. What damages a text shows in divergence and perplexity.
    "int4": TokenTolerance(1.0, 0.05, 0.02, 0.8, 0.3, 1.3, False),
}
_OF_CACHE: dict[CachePrecision, TokenTolerance] = {
    "fp32": _TOKEN_TOLERANCES["fp32"],
    "bf16": _TOKEN_TOLERANCES["bf16"],
    "fp16": _TOKEN_TOLERANCES["fp16"],
    # 0.03 measured of an error. What is rounded in the cache depends on how a prompt was cut into
    # steps: tokens of the same step are not read from there.
    "u8": TokenTolerance(0.1, 0.05, 0.06, 0.97, 0.02, 1.03, False),
}


# A token whose experts are nearly tied goes to others once anything before is rounded, and what it
# then says is off by more than rounding: by 0.57 at most measured, 0.04 with all tokens sent where
# the original sends them. A cache rounded otherwise in steps of another size does the same: 0.53
# measured of mixing. No bound for every place can tell that from damage, so it is bounded how many
# places may be such: 0.3 to 1.8 % measured of six engines, where all others keep what a model
# without experts keeps. What damages a text shows in the means, too.
_REROUTED, _REROUTED_SHARE = 0.75, 0.1


def token_tolerance(
    precision: DecoderPrecision, cache: CachePrecision, *, is_mixture: bool = False
) -> TokenTolerance:
    """What a decoder of that precision, with a cache of that, must keep.

    Args:
        precision: Of the engine.
        cache: Of its keys and values.
        is_mixture: Whether tokens choose among experts. In fp32 that allows nothing more.
    """
    tolerance = _token_tolerance(precision, cache)
    if is_mixture and not tolerance.is_exact:
        return tolerance._replace(
            error=max(tolerance.error, _REROUTED),
            mixing=max(tolerance.mixing, _REROUTED),
            usual=Usual(tolerance.error, tolerance.mixing, _REROUTED_SHARE),
        )
    return tolerance


def _token_tolerance(precision: DecoderPrecision, cache: CachePrecision) -> TokenTolerance:
    weights, kept = _TOKEN_TOLERANCES[precision], _OF_CACHE[cache]
    return TokenTolerance(
        error=max(weights.error, kept.error),
        near=max(weights.near, kept.near),
        mixing=max(weights.mixing, kept.mixing),
        agreement=min(weights.agreement, kept.agreement),
        kl=max(weights.kl, kept.kl),
        perplexity=max(weights.perplexity, kept.perplexity),
        is_exact=weights.is_exact and kept.is_exact,
    )
