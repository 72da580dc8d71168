"""Computes on the processor what is for GPUs: for a certificate where there is none, not to serve.

The provider for processors has few operators in half precision and casts around the others, so the
numbers that a graph stores are those of a GPU, and the time is not.
"""

from dataclasses import replace

from enginehouse_server.engine.base import EncoderSpec
from enginehouse_server.engine.decoder import CachePrecision, DecoderSpec

from .decoder import OnnxRuntimeDecoder
from .encoder import OnnxRuntimeEncoder
from .place import cpu_place

__all__ = ["stand_in_decoder", "stand_in_encoder"]

_MIXED_UP = ("LayerNormFusionL1", "LayerNormFusionL2")  # in fp16 they make graphs of mixed types


def stand_in_encoder(spec: EncoderSpec) -> OnnxRuntimeEncoder:
    """An encoder whose graph may be in half precision or eight bits.

    Raises:
        PlanMismatchError: ONNX Runtime cannot read the file.
    """
    place = replace(cpu_place(), without=_MIXED_UP)
    return OnnxRuntimeEncoder(replace(spec, precision="fp32"), place)


def stand_in_decoder(spec: DecoderSpec, *, is_lowered: bool) -> OnnxRuntimeDecoder:
    """A decoder whose graph and cache may be in half precision.

    Args:
        spec: What to load.
        is_lowered: Whether the graph was lowered for TensorRT and runs as it is.

    Raises:
        PlanMismatchError: ONNX Runtime cannot read the file, or the cache has no room for a slot.
    """
    cached: frozenset[CachePrecision] = frozenset({"fp32", "fp16"})
    place = replace(cpu_place(), cache_precisions=cached, without=_MIXED_UP)
    return OnnxRuntimeDecoder(replace(spec, precision="fp32"), place, is_lowered=is_lowered)
