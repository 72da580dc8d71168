"""Finds out whether padding changes a model's answers: in some architectures it does.

It is a property of the graph, so it is asked of the fp32 engine: rounding to int8 or bf16 would
hide a small dependence, or look like one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginehouse_builder.errors import CertificateError
from enginehouse_server.engine.base import EncoderLane, TokenRow

from .answers import answer_alone, answer_batches, answer_padded, mixed_batches
from .certify import Judged
from .compare import spread_of
from .tolerance import TOLERANCES

__all__ = ["PaddingCheck", "check_padding"]

_MAX_ROWS = 32


@dataclass(frozen=True, slots=True)
class PaddingCheck:
    """What padding does.

    Attributes:
        deviation: Greatest change of a logit in a padded shape, by how far logits vary.
        is_invariant: Whether that is no more than rounding.
    """

    deviation: float
    is_invariant: bool


def check_padding(lane: EncoderLane, rows: Sequence[TokenRow], judged: Judged) -> PaddingCheck:
    """Compares rows alone with the same in longer shapes, beside longer and beside empty rows.

    Args:
        lane: Of an fp32 engine.
        rows: Of many lengths; some of them are taken.
        judged: Of it, the problem and the limits are read.

    Raises:
        CertificateError: All rows are of the greatest length, so nothing can be padded.
    """
    limits = judged.limits
    by_length = sorted(rows, key=lambda row: len(row.ids))
    chosen = by_length[:: -(-len(by_length) // _MAX_ROWS)]
    if len(chosen[0].ids) >= limits.max_tokens:
        raise CertificateError(
            f"whether padding changes the model's answers cannot be found out: each of the "
            f"{len(rows)} samples fills a row of {limits.max_tokens} tokens. "
            "Give more with --max-tokens, or shorter samples"
        )
    alone = answer_alone(lane, chosen)
    padded = [
        answer_batches(lane, chosen, mixed_batches(chosen, limits), limits),
        answer_padded(lane, chosen, limits),
    ]
    deviation = float(np.abs(np.stack(padded) - alone).max()) / spread_of(
        alone, judged.task.problem
    )
    return PaddingCheck(deviation, deviation <= TOLERANCES["fp32"].error)
