"""Which layers OpenVINO's paged attention can express, and what keeps it from the others.

The one place that says so: whoever has to choose another way for a model asks here.
"""

from collections.abc import Sequence

from enginehouse_server.engine.decoder import LayerGeometry

__all__ = ["obstacle_to_paging"]


def obstacle_to_paging(layers: Sequence[LayerGeometry]) -> str | None:
    """What paged attention cannot express of these layers, to follow "the model"; None if nothing.

    A model is run by it as a whole or not at all.
    """
    if any(layer.softcap for layer in layers):
        return "soft-caps its attention, which OpenVINO's paged attention does not"
    return None
