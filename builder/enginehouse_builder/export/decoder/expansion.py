"""Keys and values that a model makes of what it caches: those of latent attention.

transformers caches a token's latents and makes keys and values of all of them at every call. Where
each token's are made of its own latents alone, and alike wherever it stands, they can as well be
cached themselves. That is tried here, by numbers.
"""

import torch
from torch import Tensor

__all__ = ["is_made_token_by_token", "moved_on"]

_TOLERANCE = 1e-5  # of the largest number: fp32, the same products in another place


def moved_on(cached: Tensor) -> Tensor:
    """Cached states `[batch, heads, length, dim]` of which each token has those of the next one.

    The last token gets states that no token had.
    """
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(cached[:, :, :1].shape, generator=generator).to(cached)
    return torch.cat([cached[:, :, 1:], other * (1 + cached.abs().max())], dim=2)


def is_made_token_by_token(made: Tensor, made_of_moved: Tensor) -> bool:
    """Whether what was made of states moved with them, and is else as it was.

    Args:
        made: Keys or values `[batch, kv_heads, length, dim]`, of some cached states.
        made_of_moved: Those of the same, `moved_on`.
    """
    before, after = made[:, :, 1:], made_of_moved[:, :, :-1]
    allowed = _TOLERANCE * float(made.abs().max())
    return bool((before - after).abs().max() <= allowed)
