"""What an engine makes of a text that is given: the logits at its places, each text alone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import MOST_LOGITS, DecoderEngine, StepItem

from .continuations import Continuation

__all__ = ["Scores", "score"]


class Scores(NamedTuple):
    """An engine's figures beside a continuation of the original's.

    Attributes:
        prompt_losses: Negative log-likelihood of the prompt's tokens, as in the continuation.
        best: Likeliest token at each place of the continuation's tokens.
        best_logits: Their logits.
        top_logits: Logits of the original's likeliest tokens, `[tokens, top]`.
        log_sums: Logarithm of the sum of all exponentials of logits.
        joint_logits: Logits of the tokens that the engine chose beside other sequences.
    """

    prompt_losses: NDArray[np.float64]
    best: NDArray[np.int64]
    best_logits: NDArray[np.float64]
    top_logits: NDArray[np.float64]
    log_sums: NDArray[np.float64]
    joint_logits: NDArray[np.float64]


def score(engine: DecoderEngine, text: Continuation, joint: Sequence[int]) -> Scores:
    """Gives a prompt and what the original went on with to the engine.

    Args:
        engine: None of its blocks is in use.
        text: The original's.
        joint: What the engine chose at the same places, each taken into account as long as all
            tokens before it are the original's.

    Raises:
        DeviceError: The runtime failed.
    """
    tokens = [*text.prompt, *text.tokens]
    first = 0 if text.prompt_losses else len(text.prompt) - 1
    split = len(text.prompt) - 1 - first  # rows before are of the prompt's own tokens
    top_ids = np.array(text.top_ids)
    losses: list[float] = []
    columns: list[tuple[int, float, NDArray[np.float32], float, float]] = []
    for start, logits in _rows(engine, tokens[:-1], first):
        log_sums = _log_sums(logits)
        for i, row in enumerate(logits):
            place = start + i
            log_sum = float(log_sums[i])
            if place < split:
                losses.append(log_sum - float(row[tokens[first + place + 1]]))
                continue
            j = place - split
            best = int(row.argmax())
            columns.append((best, row[best], row[top_ids[j]], log_sum, row[joint[j]]))
    best_ids, best_logits, top, sums, chosen = zip(*columns, strict=True)
    return Scores(
        prompt_losses=np.array(losses, np.float64),
        best=np.array(best_ids),
        best_logits=np.array(best_logits, np.float64),
        top_logits=np.array(top, np.float64),
        log_sums=np.array(sums, np.float64),
        joint_logits=np.array(chosen, np.float64),
    )


def _rows(engine: DecoderEngine, tokens: Sequence[int], first: int) -> Iterator[tuple[int, Logits]]:
    """Logits after each token from the `first` on, in pieces, each with the index of its first."""
    limits = engine.limits
    blocks = range(-(-len(tokens) // limits.block_size))
    size = min(MOST_LOGITS, limits.max_step_tokens)
    for start in range(0, len(tokens), size):
        piece = tokens[start : start + size]
        wanted = min(len(piece), max(0, start + len(piece) - first))
        engine.start([StepItem(blocks, start, piece, wanted)])
        logits = engine.wait()
        if wanted:
            yield start + len(piece) - wanted - first, logits


def _log_sums(logits: Logits) -> NDArray[np.float64]:
    most = logits.max(axis=1)
    sums = np.exp(logits - most[:, None]).sum(axis=1, dtype=np.float64)
    log_sums: NDArray[np.float64] = most + np.log(sums)
    return log_sums
