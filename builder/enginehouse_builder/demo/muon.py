"""Muon, an optimizer for weights that are matrices, in fp32.

From K. Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024
(https://kellerjordan.github.io/posts/muon). It takes the writer in a few hundred steps to where
AdamW would need thousands. torch has a Muon too, but one that computes in bf16, which processors
without such instructions do many times slower.
"""

from collections.abc import Iterable
from typing import cast

import torch

__all__ = ["Muon"]

# Of the fifth-degree polynomial that draws singular values towards 1; from the source above.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_NUM_ITERATIONS = 5
_MOMENTUM = 0.9


class Muon(torch.optim.Optimizer):
    """Steps along the momentum's nearest semi-orthogonal matrix, its directions all as long."""

    def __init__(self, matrices: Iterable[torch.Tensor], lr: float, weight_decay: float) -> None:
        """Takes the weights, each `[out, in]`, and what a step moves and shrinks them by."""
        by_shape: dict[torch.Size, list[torch.Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        # A group is of one shape: its products are computed together.
        groups = [{"params": alike} for alike in by_shape.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every weight by its gradient."""
        del closure
        for group in self.param_groups:
            weights: list[torch.Tensor] = group["params"]
            gradients = torch.stack([cast(torch.Tensor, weight.grad) for weight in weights])
            state = self.state[weights[0]]  # of the whole group
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradients)
            state["momentum"].lerp_(gradients, 1 - _MOMENTUM)
            ahead = gradients.lerp(state["momentum"], _MOMENTUM)  # as Nesterov looks
            # Outputs that outnumber inputs would else move by less each.
            scale = max(1.0, gradients.shape[1] / gradients.shape[2]) ** 0.5
            for weight, direction in zip(weights, _orthogonal(ahead), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction, alpha=-group["lr"] * scale)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Nearly the matrices with the singular vectors of those given and all singular values 1."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if is_tall else x
