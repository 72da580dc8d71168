"""Weights of a checkpoint that its model does not read, and what they give away.

A checkpoint of another task's model loads without complaint where the heads' names are the same,
and one of an author's own class where it only has more layers. What is left over shows it.
"""

import re
from collections.abc import Iterable

from transformers import PreTrainedModel

from enginehouse_builder.errors import UnsupportedModelError

__all__ = ["check_unread"]

# Heads that an encoder was pretrained with and that nobody removed, as transformers names them,
# and the weights of classes in a loss.
_HARMLESS = re.compile(
    r"^(cls\.|lm_head\.|mlm_head\.|vocab_(transform|layer_norm|projector)\.|predictions\.|"
    r"(generator|discriminator|lm|mask)_(predictions|lm_head)\.|nsp_head\.|sop_classifier\.|"
    r"final_logits_bias$|(loss|loss_fct|criterion)\.)"
)


def check_unread(model: PreTrainedModel, unread: Iterable[str], name: str) -> None:
    """Refuses a checkpoint with weights of a head that the model does not have.

    Args:
        model: As it was loaded.
        unread: Names of the checkpoint's other weights.
        name: What messages call the checkpoint.

    Raises:
        UnsupportedModelError: There is such a weight; it is named.
    """
    base = f"{model.base_model_prefix}."  # poolers and buffers of other versions of the class
    foreign = sorted(key for key in unread if not key.startswith(base) and not _HARMLESS.match(key))
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise UnsupportedModelError(
            f"{name} has weights that {type(model).__name__} does not read: "
            f"{', '.join(foreign[:3])}{more}; it was trained as something else, and its answers "
            "would not be its author's. Save it as the class that it is, without those weights"
        )
