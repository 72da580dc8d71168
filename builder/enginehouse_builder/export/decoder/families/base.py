"""What an adapter of a family is: it puts the exporter's attention into a module of its own kind.

transformers lets attention be replaced in models that look it up in its interface. Others compute
it within a module: an adapter knows that module, and gives the function of it that is to be
replaced for the time of an export.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor, nn

__all__ = ["Adapter", "LayerAttention", "Replacement"]


class LayerAttention(Protocol):
    """Caches new keys and values of a layer, and attends to all that it then has.

    Attributes:
        positions: Of the tokens that the model is called with, `[batch, length]`.
    """

    positions: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Takes new keys and values `[batch, kv_heads, length, dim]`, gives those to attend to."""
        ...

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **extras: object,
    ) -> tuple[Tensor, None]:
        """As transformers' interface: `[batch, length, heads, dim]` of queries with heads first.

        Besides what the interface knows, `extras` may hold:
            window: How many positions, itself included, the module lets a token see, whatever the
                mask; 0 for all.
            slopes: `slope * (key's position - query's)` is added to a scaled score, `[heads]`.
        """
        ...


class Replacement(NamedTuple):
    """A function of a module, and what stands in for it."""

    name: str
    function: Callable[..., object]


# Of a module, what attends, and the module's number among those of its class in the model.
Adapter = Callable[[nn.Module, LayerAttention, int], Replacement]
