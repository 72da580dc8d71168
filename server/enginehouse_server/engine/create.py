"""Makes the engine of a backend, importing that runtime alone."""

from enginehouse_server.errors import PlanMismatchError

from .base import EncoderEngine, EncoderSpec

__all__ = ["create_encoder"]


def create_encoder(backend: str, spec: EncoderSpec) -> EncoderEngine:
    """Loads an engine.

    Raises:
        PlanMismatchError: The backend is unknown or not installed, or cannot run the file here.
    """
    if backend != "openvino":
        raise PlanMismatchError(f"this server has no backend {backend!r}; it has: openvino")
    try:
        from .openvino import OpenVinoEncoder
    except ImportError as error:
        raise PlanMismatchError(
            f"the backend openvino is not installed ({error}): pip install 'enginehouse[server]'"
        ) from error
    return OpenVinoEncoder(spec)
