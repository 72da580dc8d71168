"""Opens a decoder as the server does, for certificate and measurement."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from enginehouse_server.engine.create import BACKENDS, create_decoder
from enginehouse_server.engine.decoder import DecoderEngine, DecoderSpec
from enginehouse_server.engine.memory import available_bytes
from enginehouse_server.errors import EnginehouseError

from .errors import BuildError, UnsupportedModelError

__all__ = ["LEAST_SLOTS", "cache_bytes", "opened_decoder", "opened_stand_in", "token_bytes"]

_BYTES = 4  # of a cached number, in the widest precision
_BLOCK = 32  # tokens: a sequence's last block may be nearly empty
LEAST_SLOTS = 3  # a sequence, its twin, and another
_SHARE_OF_FREE_MEMORY = 0.5


def cache_bytes(spec: DecoderSpec, num_tokens: int) -> int:
    """Memory in which so many tokens fit, whatever the precision of the cache.

    Slots are each as long as the longest sequence, whatever is in them. There is one for every
    sequence that may run, as far as half of the free memory goes.
    """
    if spec.attention == "paged":
        return token_bytes(spec) * (num_tokens + _BLOCK)
    slot_bytes = token_bytes(spec) * (spec.max_tokens + _BLOCK)
    free = available_bytes()
    if free is None:
        return slot_bytes * spec.max_sequences
    fitting = max(LEAST_SLOTS, int(free * _SHARE_OF_FREE_MEMORY) // slot_bytes)
    return slot_bytes * min(spec.max_sequences, fitting)


def token_bytes(spec: DecoderSpec) -> int:
    """Memory that the keys and values of a token take at most."""
    width = sum(layer.num_kv_heads * (layer.key_dim + layer.value_dim) for layer in spec.layers)
    return width * _BYTES


def opened_decoder(
    spec: DecoderSpec, backend: str = BACKENDS[0]
) -> AbstractContextManager[DecoderEngine]:
    """The engine, closed when the context ends.

    Raises:
        UnsupportedModelError: The runtime cannot compile the graph.
        BuildError: The runtime failed while computing.
    """
    return _opened(lambda: create_decoder(backend, spec))


def opened_stand_in(
    spec: DecoderSpec, *, is_lowered: bool
) -> AbstractContextManager[DecoderEngine]:
    """What computes an engine's graph where the engine does not run, closed at the end.

    Args:
        spec: Of the graph.
        is_lowered: Whether it was lowered for TensorRT.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot read the graph.
        BuildError: It failed while computing.
    """
    # Need not be installed for anything else.
    from enginehouse_server.engine.onnxruntime.stand_in import stand_in_decoder

    return _opened(lambda: stand_in_decoder(spec, is_lowered=is_lowered))


@contextmanager
def _opened(create: Callable[[], DecoderEngine]) -> Iterator[DecoderEngine]:
    try:
        engine = create()
    except EnginehouseError as error:
        raise UnsupportedModelError(f"the exported model has no engine here: {error}") from error
    try:
        yield engine
    except EnginehouseError as error:
        raise BuildError(f"the engine failed: {error}") from error
    finally:
        engine.close()
