from dataclasses import replace

import pytest

from enginehouse_server.repository.certify import is_certified_elsewhere
from tests.fixtures.plans import engine_of, plan_of

HERE = "NVIDIA L4"


@pytest.mark.parametrize(
    ("certified", "device", "expected"),
    [("lowered", "a processor", True), ("runtime", HERE, False), ("runtime", "NVIDIA A10", True)],
)
def test_a_plan_is_certified_again_where_another_device_or_runtime_was(
    certified: str, device: str, expected: bool
) -> None:
    engine = replace(engine_of("tensorrt", plan_of(certified=certified)), device=device)
    assert is_certified_elsewhere(engine, HERE) == expected


def test_a_graph_is_proven_by_its_probes_alone() -> None:
    assert not is_certified_elsewhere(replace(engine_of("openvino"), device="another"), HERE)
