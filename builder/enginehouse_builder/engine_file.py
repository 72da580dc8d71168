"""Opens an engine as the server does, for certificate and measurement."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from enginehouse_server.engine.base import EncoderEngine, EncoderSpec, PlanTraits, Precision
from enginehouse_server.engine.create import BACKENDS, create_encoder
from enginehouse_server.errors import EnginehouseError

from .errors import BuildError, UnsupportedModelError

__all__ = ["EngineFile", "opened", "opened_stand_in"]

_NUM_SHAPES = 8  # shapes are computed one after the other, hardly ever again


@dataclass(frozen=True, slots=True)
class EngineFile:
    """What an engine is opened from.

    Attributes:
        model: The ONNX file, or the plan.
        precision: Arithmetic.
        inputs: Names of the graph's inputs.
        pad_id: Token that fills a row up.
        max_batch_tokens: Most rows * padded length of a batch.
        num_threads: Processor threads of all lanes together.
        num_lanes: Batches that can compute side by side; one has all threads to itself.
        backend: What runs it.
        plan: Of a compiled plan; None of a graph.
    """

    model: Path
    precision: Precision
    inputs: tuple[str, ...]
    pad_id: int
    max_batch_tokens: int
    num_threads: int
    num_lanes: int = 1
    backend: str = BACKENDS[0]
    plan: PlanTraits | None = None


def opened(file: EngineFile) -> AbstractContextManager[EncoderEngine]:
    """The engine, closed when the context ends.

    Raises:
        UnsupportedModelError: The runtime cannot compile the graph.
        BuildError: The runtime failed while computing.
    """
    return _opened(lambda: create_encoder(file.backend, _spec(file)))


def opened_stand_in(file: EngineFile) -> AbstractContextManager[EncoderEngine]:
    """What computes an engine's graph where the engine does not run, closed at the end.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot read the graph.
        BuildError: It failed while computing.
    """
    # Need not be installed for anything else.
    from enginehouse_server.engine.onnxruntime.stand_in import stand_in_encoder

    return _opened(lambda: stand_in_encoder(_spec(file)))


def _spec(file: EngineFile) -> EncoderSpec:
    return EncoderSpec(
        model=file.model,
        precision=file.precision,
        inputs=file.inputs,
        pad_id=file.pad_id,
        max_batch_tokens=file.max_batch_tokens,
        num_shapes=_NUM_SHAPES,
        num_threads=file.num_threads,
        num_lanes=file.num_lanes,
        plan=file.plan,
    )


@contextmanager
def _opened(create: Callable[[], EncoderEngine]) -> Iterator[EncoderEngine]:
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
