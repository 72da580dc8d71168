"""The double in TensorRT's place."""

from collections.abc import Iterator

import pytest

from tests.fixtures.trt_double import DoubleModule, install


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[DoubleModule]:
    """TensorRT and a GPU; whatever a real one would refuse, or what is not released, fails."""
    module = install(monkeypatch)
    yield module
    assert not module.faults
    weights = sum(engine.weights.num_bytes for engine in module.engines)  # go with the objects
    assert sum(device.num_bytes_used for device in module.devices) == weights
    for device in module.devices:
        assert device.is_closed
        assert all(graph.is_closed for graph in device.graphs)
