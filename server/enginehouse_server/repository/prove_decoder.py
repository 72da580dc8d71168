"""Asks a loaded decoder the manifest's probes: does it answer here as where it was certified?"""

import logging
from collections.abc import Sequence

import numpy as np

from enginehouse_builder.manifest import DecoderEngine as BuiltDecoder
from enginehouse_builder.manifest import TokenProbe
from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import DecoderEngine, ReducingDecoder, StepItem
from enginehouse_server.errors import ProbeError

__all__ = ["prove_decoder"]

_log = logging.getLogger(__name__)
_SUM_ERROR = 1e-4  # share of a sum of weights, which sampling takes it to be off by at most


def prove_decoder(engine: DecoderEngine, chosen: BuiltDecoder, name: str) -> None:
    """Asks the probes, one after another, in the first blocks of the cache.

    The first logits must be within the certificate's tolerance. In fp32 each greedy token must be
    the certified one, too, or as likely as it within that tolerance; in others the step after the
    prompt must at least give numbers. What no lowered limit leaves a probe for is only warned of.
    An engine that reduces its logits must do so right.

    Raises:
        ProbeError: An answer differs.
    """
    certificate = chosen.certificate
    allowed = certificate.tolerance * certificate.scale
    num_asked = 0
    is_exact = chosen.precision == "fp32" and chosen.cache_precision == "fp32"
    for number, probe in enumerate(chosen.probes):
        if len(probe.prompt) + len(probe.tokens) > engine.limits.max_tokens:
            continue  # a limit was lowered: this sequence is not served here
        num_asked += 1
        found = _deviation(engine, probe, follow=is_exact)
        if not found <= allowed:  # also when it is not a number
            raise ProbeError(
                f"{name}: the engine answers probe {number} with logits {found:.3g} away from "
                f"those it was certified with ({certificate.runtime} on {chosen.device}); at most "
                f"{allowed:.3g} is allowed: build the model again on this machine"
            )
    if engine.limits.num_best and isinstance(engine, ReducingDecoder):
        _prove_reduction(engine, name)
    if not num_asked:
        _log.warning(
            "%s serves without proof that it answers as certified: its %d probes are longer than "
            "the %d tokens that are left; raise --max-sequence-tokens or --cache-memory",
            name,
            len(chosen.probes),
            engine.limits.max_tokens,
        )


def _deviation(engine: DecoderEngine, probe: TokenProbe, *, follow: bool) -> float:
    """How far the answers to a probe are from the certified ones, as a difference of logits.

    Not a number if an answer is none: `max` of numbers would lose it.
    """
    blocks = range(-(-(len(probe.prompt) + len(probe.tokens)) // engine.limits.block_size))
    logits = _prefill(engine, probe.prompt, blocks)
    if not np.isfinite(logits.max()):  # of logits with NaN among them the NaN
        return float("nan")
    ids = [token for token, _ in probe.top]
    certified = np.array([logit for _, logit in probe.top], np.float32)
    worst = float(np.abs(logits[ids] - certified).max(initial=0.0))
    num_cached = len(probe.prompt)
    for token in probe.tokens if follow else probe.tokens[:1]:
        if follow:
            worst = max(worst, float(logits.max() - logits[token]))
        if num_cached + 1 < len(probe.prompt) + len(probe.tokens):
            engine.start([StepItem(blocks, num_cached, [token])])
            logits = engine.wait()[0]
            num_cached += 1
            if not np.isfinite(logits.max()):
                return float("nan")
    return worst


def _prove_reduction(engine: ReducingDecoder, name: str) -> None:
    """Compares what some rows of logits are reduced to with all of them."""
    count = min(4, engine.limits.max_step_tokens, engine.limits.max_tokens)
    blocks = range(-(-count // engine.limits.block_size))
    engine.start([StepItem(blocks, 0, [1] * count, count, is_reduced=True)])
    found = engine.wait_reduced()
    rows, tokens = found.fetch(0, count), found.tokens.astype(np.int64)
    is_token = (tokens >= 0) & (tokens < rows.shape[1])
    given = np.take_along_axis(rows, np.where(is_token, tokens, 0), axis=1)
    largest = -np.sort(-rows, axis=1)[:, : tokens.shape[1]]
    is_right = is_token.all() and (given == found.best).all() and (found.best == largest).all()
    is_distinct = all(len(set(row)) == len(row) for row in tokens.tolist())
    sums = np.exp(rows - found.best[:, :1]).sum(axis=1, dtype=np.float64)
    if not (is_right and is_distinct and np.allclose(found.weight_sums, sums, rtol=_SUM_ERROR)):
        raise ProbeError(
            f"{name}: the engine reduces logits on its device to {found.best[0, 0]:.6g} of token "
            f"{tokens[0, 0]} and a sum of {found.weight_sums[0]:.6g}, where all of them give "
            f"{largest[0, 0]:.6g} of token {rows[0].argmax()} and {sums[0]:.6g}: build the model "
            "for another target, or update the runtime"
        )


def _prefill(engine: DecoderEngine, prompt: Sequence[int], blocks: Sequence[int]) -> Logits:
    """The logits `[vocab]` after a prompt, in as many steps as it takes."""
    size = engine.limits.max_step_tokens
    logits: Logits = np.empty((0, 0), np.float32)
    for start in range(0, len(prompt), size):
        chunk = prompt[start : start + size]
        is_last = start + size >= len(prompt)
        engine.start([StepItem(blocks, start, chunk, num_logits=int(is_last))])
        logits = engine.wait()
    last: Logits = logits[0]
    return last
