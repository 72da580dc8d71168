"""Muon, an optimizer for weights that are matrices, in fp32.

From K. Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024
(https://kellerjordan.github.io/posts/muon). It takes the writer in a few hundred steps to where
AdamW would need thousands. torch has a Muon too, but one that computes in bf16, which processors
without such instructions do many times slower.
"""

from collections.abc import Iterable

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
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every weight by its gradient."""
        del closure
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - _MOMENTUM)
                ahead = weight.grad.lerp(state["momentum"], _MOMENTUM)  # as Nesterov looks
                # Outputs that outnumber inputs would else move by less each.
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(_orthogonal(ahead), alpha=-group["lr"] * scale)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly the matrix with singular vectors of the given one and all singular values 1."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x: torch.Tensor = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.T if is_tall else x
