"""Mixtures of experts of a decoder: tokens sorted by expert, each part times its own matrices.

transformers hands its modules of experts what each token's router chose. Here every choice is a
row; the rows are put in the order of their experts by counting, as in a counting sort, and the
products come over consecutive parts of them, of which those of experts that nobody chose are empty:
no weight is read in vain and no row is computed in vain, whether a step has one token or hundreds.
No row is dropped, and a row's result depends on no other row.

What lies between the products (gates, activations, clamps, norms, biases) stays the model's own
code, over all rows at once. In the trace a product is one node; `expert_products` writes it out.
"""

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from enginehouse_builder.export.experts import Experts

from .operators import DOMAIN

__all__ = ["PRODUCT", "num_products", "register_sorted_experts"]

PRODUCT = "ExpertProduct"  # only while tracing: no file has it

_NAME = "enginehouse_sorted"
_PRODUCTS = 2  # of a module: up (with the gate), and down


def register_sorted_experts() -> str:
    """Makes them known to transformers, and gives the name to load a model with."""
    ALL_EXPERTS_FUNCTIONS.register(_NAME, _forward)
    return _NAME


def num_products(model: PreTrainedModel) -> int:
    """How many products of experts the trace of a model must have."""
    return _PRODUCTS * sum(1 for _ in _experts_of(model))


def _experts_of(model: PreTrainedModel) -> Iterator[nn.Module]:
    # What transformers' decorator of such modules leaves in each.
    return (m for m in model.modules() if hasattr(m, "_is_expert_parallel"))


class _Order(NamedTuple):
    """Choices in the order of their experts.

    Attributes:
        chosen: Expert of each choice, token by token, `[choices]`.
        counts: Choices of each expert, `[experts]`.
        places: Where each choice lies in the order, `[choices]`.
        sources: Which choice lies at each place, `[choices]`.
    """

    chosen: Tensor
    counts: Tensor
    places: Tensor
    sources: Tensor


def _forward(experts: Experts, hidden: Tensor, chosen: Tensor, chosen_weights: Tensor) -> Tensor:
    """Takes hidden `[tokens, hidden]`, the router's choice `[tokens, top_k]` and its weights."""
    top_k = chosen.shape[1]
    order = _ordered(chosen, experts.num_experts)
    rows = hidden.index_select(0, order.sources // top_k)  # [choices, hidden]
    inner = _linear(experts, "gate_up_proj" if experts.has_gate else "up_proj", rows, order)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    outer = _linear(experts, "down_proj", inner, order)  # [choices, hidden]
    if experts.has_post_expert_norm:
        outer = experts.post_expert_norm(outer)
    answers = outer.index_select(0, order.places).reshape(-1, top_k, outer.shape[1])
    weighed = answers * chosen_weights.to(outer.dtype).unsqueeze(-1)
    return weighed.sum(1).to(hidden.dtype)


def _ordered(chosen: Tensor, num_experts: int) -> _Order:
    flat = chosen.reshape(-1)
    numbers = torch.arange(num_experts, device=chosen.device)
    is_chosen = (flat.unsqueeze(1) == numbers).to(torch.int64)  # [choices, experts]
    counts = is_chosen.sum(0)
    starts = counts.cumsum(0) - counts
    places = ((is_chosen.cumsum(0) - 1 + starts) * is_chosen).sum(1)
    rows = torch.arange(flat.shape[0], device=chosen.device)
    return _Order(flat, counts, places, torch.zeros_like(rows).scatter(0, places, rows))


def _linear(experts: Experts, name: str, rows: Tensor, order: _Order) -> Tensor:
    outputs = _product(rows, order.counts, getattr(experts, name), experts.is_transposed)
    if experts.has_bias:
        bias: Tensor = getattr(experts, f"{name}_bias")  # [experts, out]
        outputs = outputs + bias.index_select(0, order.chosen.index_select(0, order.sources))
    return outputs


def _product(rows: Tensor, counts: Tensor, weight: Tensor, is_transposed: bool) -> Tensor:
    """Consecutive parts of rows, `counts` long, each times the matrix of its expert.

    Args:
        rows: `[rows, in]`.
        counts: `[experts]`, of sum `rows`.
        weight: `[experts, in, out]` if `is_transposed`, in transformers' sense of the word;
            `[experts, out, in]` otherwise.
        is_transposed: How the weight lies.
    """
    if not torch.compiler.is_exporting():
        matrices = weight if is_transposed else weight.transpose(1, 2)
        parts = rows.split(cast(list[int], counts.tolist()))
        return torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)])
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{PRODUCT}",
        [rows, counts, weight],
        {"is_transposed": int(is_transposed)},
        dtype=rows.dtype,
        shape=(rows.shape[0], weight.shape[2 if is_transposed else 1]),
        version=1,
    )
