"""Compiles plans ahead, from a graph to a file: what builds of a model need, wherever it runs.

Needs no original and no torch: the canonical graph, or one of rounded weights, is enough. Its types
are changed by `engine.graph` first, where the plan is to compute in half precision.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .base import Shape
from .decoder import LayerGeometry
from .tensorrt import Flavour, PlanPrecision, PlanReport, PlanSpec, Profile, TensorRange
from .tensorrt.compile import Progress, compile_plan
from .tensorrt.lower import Lowered, lower_decoder

__all__ = ["PlanOrder", "compile_graph", "encoder_profiles", "lower_graph"]

_LOWERED = "lowered.onnx"
_SHORTEST = 32  # tokens: lengths up to it share a profile


@dataclass(frozen=True, slots=True)
class PlanOrder:
    """What plan is wanted.

    Attributes:
        flavour: Which TensorRT.
        compute_capabilities: Of the GPUs, as "sm89"; ("any",) for all that TensorRT-RTX takes.
        precision: Of the arithmetic, or of the weights where those are narrower.
        profiles: In the order in which the plan has them.
        layers: Shape of each layer's attention; none of an encoder.
        max_tokens: Longest sequence of a decoder; 0 of an encoder.
        optimization_level: 0 to 5.
        workspace_bytes: Most memory of the device that a kernel may use beside its tensors.
        timing_cache: File of measured kernels.
    """

    flavour: Flavour
    compute_capabilities: tuple[str, ...]
    precision: PlanPrecision
    profiles: tuple[Profile, ...]
    layers: tuple[LayerGeometry, ...] = ()
    max_tokens: int = 0
    optimization_level: int = 3
    workspace_bytes: int | None = None
    timing_cache: Path | None = None


def encoder_profiles(inputs: Sequence[str], shapes: Sequence[Shape]) -> tuple[Profile, ...]:
    """A profile for each octave of lengths, so that short batches do not pay for long ones.

    Args:
        inputs: Names of the graph's inputs, each `[batch, length]`.
        shapes: Of all batches.
    """
    octaves: dict[int, list[Shape]] = {}
    for shape in shapes:
        octaves.setdefault(max(_SHORTEST, 1 << (shape.length - 1).bit_length()), []).append(shape)
    return tuple(_encode(inputs, octaves[end]) for end in sorted(octaves))


def _encode(inputs: Sequence[str], shapes: Sequence[Shape]) -> Profile:
    usual = max(shapes, key=lambda s: (s.num_tokens, s.length))
    least = 1, min(s.length for s in shapes)
    most = max(s.batch for s in shapes), max(s.length for s in shapes)
    return Profile("encode", tuple(TensorRange(name, least, tuple(usual), most) for name in inputs))


def lower_graph(
    model: Path, order: PlanOrder, folder: Path, *, reduces: bool = True
) -> tuple[Path, Lowered]:
    """The graph in TensorRT's operators, in a folder of the same disk, and what it has of them.

    An encoder's has none of its own and stays where it is. The lowered graph has bodies for them
    too, so that ONNX Runtime computes what the plan does.

    Args:
        model: The graph in the plan's types.
        order: What plan is wanted.
        folder: Where the lowered graph goes.
        reduces: Whether it is to reduce its logits, which is of no use on a processor.

    Raises:
        PlanMismatchError: It is no such graph.
    """
    if not order.layers:
        return model, Lowered(0, 0)
    target = folder / _LOWERED
    return target, lower_decoder(model, target, order.layers, order.max_tokens, reduces=reduces)


def compile_graph(model: Path, order: PlanOrder, target: Path, progress: Progress) -> PlanReport:
    """Compiles a graph into a plan: seconds to minutes, on all processors.

    Args:
        model: The graph in the plan's types, with a decoder's canonical operators in it.
        order: What plan is wanted.
        target: Where it goes; on the disk of the graph. Nothing is left there if this fails.
        progress: Told of phases and their steps, on any thread; False ends it.

    Raises:
        PlanMismatchError: TensorRT is not installed, or did not parse what the graph says.
        UnsupportedError: It does not compile the graph.
        CancelledError: `progress` ended it.
    """
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        lowered, found = lower_graph(model, order, scratch)
        spec = PlanSpec(
            model=lowered,
            flavour=order.flavour,
            compute_capabilities=order.compute_capabilities,
            precision=order.precision,
            profiles=order.profiles,
            num_attentions=found.num_attentions,
            num_caches=found.num_caches,
            optimization_level=order.optimization_level,
            workspace_bytes=order.workspace_bytes,
            timing_cache=order.timing_cache,
        )
        return compile_plan(spec, target, progress)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
