"""Makes the engine of a backend, importing that runtime alone."""

from collections.abc import Sequence

from enginehouse_server.errors import PlanMismatchError

from .base import EncoderEngine, EncoderSpec
from .decoder import AttentionKind, DecoderEngine, DecoderSpec, LayerGeometry

__all__ = ["attention_for", "create_decoder", "create_encoder"]


def attention_for(backend: str, layers: Sequence[LayerGeometry]) -> AttentionKind:
    """How a backend is to run a model of such layers.

    Raises:
        PlanMismatchError: The backend is unknown or not installed.
    """
    _check_backend(backend)
    try:
        from .openvino.paging import obstacle_to_paging
    except ImportError as error:
        raise _not_installed(error) from error
    return "paged" if obstacle_to_paging(layers) is None else "slots"


def create_encoder(backend: str, spec: EncoderSpec) -> EncoderEngine:
    """Loads an engine that encodes.

    Raises:
        PlanMismatchError: The backend is unknown or not installed, or cannot run the file here.
    """
    _check_backend(backend)
    try:
        from .openvino import OpenVinoEncoder
    except ImportError as error:
        raise _not_installed(error) from error
    return OpenVinoEncoder(spec)


def create_decoder(backend: str, spec: DecoderSpec) -> DecoderEngine:
    """Loads an engine that decodes.

    Raises:
        PlanMismatchError: The backend is unknown or not installed, or cannot run the file here.
    """
    _check_backend(backend)
    try:
        from .openvino import OpenVinoDecoder, OpenVinoSlotDecoder
    except ImportError as error:
        raise _not_installed(error) from error
    return OpenVinoDecoder(spec) if spec.attention == "paged" else OpenVinoSlotDecoder(spec)


def _check_backend(backend: str) -> None:
    if backend != "openvino":
        raise PlanMismatchError(f"this server has no backend {backend!r}; it has: openvino")


def _not_installed(error: ImportError) -> PlanMismatchError:
    return PlanMismatchError(
        f"the backend openvino is not installed ({error}): pip install 'enginehouse[server]'"
    )
