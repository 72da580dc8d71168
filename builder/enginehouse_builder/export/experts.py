"""Mixtures of experts as plain matrix products.

transformers sends each token to its experts by grouping tokens, which has no ONNX. Here every
expert answers every token and the answers are weighed, by zero where the router did not choose:
the same sum, at the cost of the experts not chosen.
"""

from typing import Protocol

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

__all__ = ["Experts", "register_dense_experts"]


class Experts(Protocol):
    """What transformers' modules of experts have in common."""

    num_experts: int
    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool
    is_transposed: bool

    def _apply_gate(self, both: Tensor) -> Tensor: ...

    def act_fn(self, inner: Tensor) -> Tensor:
        """Between the products of experts without a gate."""
        ...

    def post_expert_norm(self, outer: Tensor) -> Tensor:
        """After the second product."""
        ...


_NAME = "enginehouse_dense"


def register_dense_experts() -> str:
    """Makes them known to transformers, and gives the name to load a model with."""
    ALL_EXPERTS_FUNCTIONS.register(_NAME, _forward)
    return _NAME


def _forward(experts: Experts, hidden: Tensor, chosen: Tensor, chosen_weights: Tensor) -> Tensor:
    """Takes hidden `[tokens, hidden]`, the router's choice `[tokens, top_k]` and its weights."""
    up = "gate_up_proj" if experts.has_gate else "up_proj"
    # Spread out: OpenVINO does not broadcast over the batch of a constant factor.
    spread = hidden.unsqueeze(0).expand(experts.num_experts, -1, -1)
    inner = _linear(experts, up, spread)  # [experts, tokens, intermediate]
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    outer = _linear(experts, "down_proj", inner)  # [experts, tokens, hidden]
    if experts.has_post_expert_norm:
        outer = experts.post_expert_norm(outer)
    numbers = torch.arange(outer.shape[0], device=hidden.device)
    is_chosen = (chosen.unsqueeze(-1) == numbers).to(outer.dtype)  # [tokens, top_k, experts]
    weights = (is_chosen * chosen_weights.unsqueeze(-1).to(outer.dtype)).sum(1)
    return (outer * weights.transpose(0, 1).unsqueeze(-1)).sum(0).to(hidden.dtype)


def _linear(experts: Experts, name: str, inputs: Tensor) -> Tensor:
    weight: Tensor = getattr(experts, name)
    outputs: Tensor = inputs @ (weight if experts.is_transposed else weight.transpose(1, 2))
    if experts.has_bias:
        outputs = outputs + getattr(experts, f"{name}_bias").unsqueeze(1)
    return outputs
