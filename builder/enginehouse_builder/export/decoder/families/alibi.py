"""Slopes of a linear bias (ALiBi, Press et al. 2022), read from the bias that a model builds."""

import torch
from torch import Tensor

from enginehouse_builder.errors import UnsupportedModelError

__all__ = ["slopes_of"]

_ROUNDING = 4 * torch.finfo(torch.float32).eps  # of the largest bias: a product or two in fp32


def slopes_of(bias: Tensor) -> Tensor:
    """What the bias of a key grows by with its position.

    Softmax takes no note of what is added to a whole row, so `slope * key's position` says the
    same as `slope * (key's position - query's)`.

    Args:
        bias: What is added to a scaled score, by the key alone, `[heads, positions]` fp32.

    Returns:
        `[heads]` fp32.

    Raises:
        UnsupportedModelError: It is not linear.
    """
    positions = torch.arange(bias.shape[1], dtype=torch.float32)
    slopes = (bias[:, -1] - bias[:, 0]) / positions[-1]
    away = (bias - bias[:, :1] - slopes[:, None] * positions).abs().amax(dim=1)
    if bool((away > _ROUNDING * bias.abs().amax(dim=1)).any()):
        raise UnsupportedModelError(
            "what it adds to scores by position is not linear: it is off a line by "
            f"{float(away.max()):.2g}"
        )
    return slopes
