"""Finds out whether padding changes a model's answers: in some architectures it does.

It is a property of the graph, so it is asked of the fp32 engine: rounding to int8 or bf16 would
hide a small dependence, or look like one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginehouse_builder.errors import CertificateError
from enginehouse_builder.manifest import Limits
from enginehouse_server.engine.base import EncoderLane, TokenRow

from .answers import answer_alone, answer_batches, answer_padded, mixed_batches
from .compare import scale_of
from .tolerance import TOLERANCES

__all__ = ["PaddingCheck", "check_padding"]

_MAX_ROWS = 32


@dataclass(frozen=True, slots=True)
class PaddingCheck:
    """What padding does.

    Attributes:
        deviation: Greatest change of a logit in a padded shape, by the largest logit.
        is_invariant: Whether that is no more than rounding.
    """

    deviation: float
    is_invariant: bool


def check_padding(lane: EncoderLane, rows: Sequence[TokenRow], limits: Limits) -> PaddingCheck:
    """Compares rows alone with the same in longer shapes, beside longer and beside empty rows.

    Args:
        lane: Of an fp32 engine.
        rows: Of many lengths; some of them are taken.
        limits: What a batch may hold.

    Raises:
        CertificateError: All rows are of the greatest length, so nothing can be padded.
    """
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
    deviation = float(np.abs(np.stack(padded) - alone).max()) / scale_of(alone)
    return PaddingCheck(deviation, deviation <= TOLERANCES["fp32"].error)
