"""Opens a decoder as the server does, for certificate and measurement."""

from collections.abc import Iterator
from contextlib import contextmanager

from enginehouse_server.engine.create import create_decoder
from enginehouse_server.engine.decoder import DecoderEngine, DecoderSpec
from enginehouse_server.errors import EnginehouseError

from .errors import BuildError, UnsupportedModelError

__all__ = ["cache_bytes", "opened_decoder"]

_BYTES = 4  # of a cached number, in the widest precision
_BLOCK = 32  # tokens: a sequence's last block may be nearly empty


def cache_bytes(spec: DecoderSpec, num_tokens: int) -> int:
    """Memory in which so many tokens fit, whatever the precision of the cache."""
    width = sum(layer.num_kv_heads * (layer.key_dim + layer.value_dim) for layer in spec.layers)
    return width * _BYTES * (num_tokens + _BLOCK)


@contextmanager
def opened_decoder(spec: DecoderSpec) -> Iterator[DecoderEngine]:
    """The engine, closed when the context ends.

    Raises:
        UnsupportedModelError: The runtime cannot compile the graph.
        BuildError: The runtime failed while computing.
    """
    try:
        engine = create_decoder("openvino", spec)
    except EnginehouseError as error:
        raise UnsupportedModelError(f"the exported model has no engine here: {error}") from error
    try:
        yield engine
    except EnginehouseError as error:
        raise BuildError(f"the engine failed: {error}") from error
    finally:
        engine.close()
