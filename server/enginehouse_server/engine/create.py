"""Makes the engine of a backend, importing that runtime alone."""

from enginehouse_server.errors import PlanMismatchError

from .base import EncoderEngine, EncoderSpec
from .decoder import DecoderEngine, DecoderSpec

__all__ = ["create_decoder", "create_encoder"]


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
