"""Makes the engine of a backend, importing that runtime alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from enginehouse_server.errors import PlanMismatchError

from .base import EncoderEngine, EncoderSpec
from .decoder import AttentionKind, DecoderEngine, DecoderSpec, LayerGeometry
from .device import Device
from .tensorrt.flavour import Flavour

__all__ = [
    "ALL_BACKENDS",
    "BACKENDS",
    "PLAN_BACKENDS",
    "attention_for",
    "computes_on_gpu",
    "create_decoder",
    "create_encoder",
    "describe",
]

PLAN_BACKENDS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")  # on a GPU, a compiled plan
_EXTRAS = {"openvino": "server", "onnxruntime": "onnxruntime"}  # what installs each
BACKENDS = tuple(_EXTRAS)  # on a processor; the better one comes first
ALL_BACKENDS = (*PLAN_BACKENDS, *BACKENDS)  # the better one comes first


def describe(backend: str, cuda_binding: str = "cuda-core") -> Device:
    """What a backend is here, and what it runs on.

    Args:
        backend: Its name.
        cuda_binding: What drives CUDA, for one on a GPU.

    Raises:
        PlanMismatchError: The backend is unknown or not installed, or there is no such device.
    """
    with _imported(backend):
        if backend in PLAN_BACKENDS:
            from .tensorrt.device import describe_device as describe_gpu

            return describe_gpu(backend, cuda_binding)
        if backend == "onnxruntime":
            from .onnxruntime.device import describe_device as describe_processor

            return describe_processor(cuda_binding)
        from .openvino.device import describe_device

        return describe_device()


def computes_on_gpu(backend: str, cuda_binding: str = "cuda-core") -> bool:
    """Whether a backend's engines compute on a GPU here, in its memory.

    Raises:
        PlanMismatchError: The backend is unknown or not installed.
    """
    with _imported(backend):
        if backend == "onnxruntime":
            from .onnxruntime.device import computes_on_cuda

            return computes_on_cuda(cuda_binding)
        return backend in PLAN_BACKENDS


def attention_for(backend: str, layers: Sequence[LayerGeometry]) -> AttentionKind:
    """How a backend is to run a model of such layers.

    Raises:
        PlanMismatchError: The backend is unknown or not installed.
    """
    with _imported(backend):
        if backend == "onnxruntime" or backend in PLAN_BACKENDS:
            return "slots"
        from .openvino.paging import obstacle_to_paging

        return "paged" if obstacle_to_paging(layers) is None else "slots"


def create_encoder(backend: str, spec: EncoderSpec) -> EncoderEngine:
    """Loads an engine that encodes.

    Raises:
        PlanMismatchError: The backend is unknown or not installed, or cannot run the file here.
    """
    with _imported(backend):
        if backend in PLAN_BACKENDS:
            from .cuda import open_device
            from .tensorrt.encoder import TensorRtEncoder

            return TensorRtEncoder(spec, backend, open_device(spec.cuda_binding))
        if backend == "onnxruntime":
            from .onnxruntime import OnnxRuntimeEncoder

            return OnnxRuntimeEncoder(spec)
        from .openvino import OpenVinoEncoder

        return OpenVinoEncoder(spec)


def create_decoder(backend: str, spec: DecoderSpec) -> DecoderEngine:
    """Loads an engine that decodes.

    Raises:
        PlanMismatchError: The backend is unknown or not installed, or cannot run the file here.
    """
    with _imported(backend):
        if backend in PLAN_BACKENDS:
            from .cuda import open_device
            from .tensorrt.decoder import TensorRtDecoder

            return TensorRtDecoder(spec, backend, open_device(spec.cuda_binding))
        if backend == "onnxruntime":
            from .onnxruntime import OnnxRuntimeDecoder

            return OnnxRuntimeDecoder(spec)
        from .openvino import OpenVinoDecoder, OpenVinoSlotDecoder

        return OpenVinoDecoder(spec) if spec.attention == "paged" else OpenVinoSlotDecoder(spec)


@contextmanager
def _imported(backend: str) -> Iterator[None]:
    """Says of a backend that is unknown or missing what to do."""
    if backend not in ALL_BACKENDS:
        raise PlanMismatchError(
            f"this server has no backend {backend!r}; it has: {', '.join(ALL_BACKENDS)}"
        )
    try:
        yield
    except ImportError as error:
        raise PlanMismatchError(
            f"the backend {backend} is not installed ({error}): "
            f"pip install 'enginehouse[{_EXTRAS.get(backend, backend)}]'"
        ) from error
