import logging

import pytest

from enginehouse_server.tasks import SamplingDefaults
from enginehouse_server.tasks.defaults import usable_defaults

NAN = float("nan")


def test_what_is_in_range_stays(caplog: pytest.LogCaptureFixture) -> None:
    given = SamplingDefaults(0.7, 20, 0.8, 0.05, 1.1)
    assert usable_defaults(given, "writer/1") == given
    assert not caplog.records


def test_a_negative_top_k_is_none() -> None:
    assert usable_defaults(SamplingDefaults(top_k=-1), "writer/1") == SamplingDefaults()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (SamplingDefaults(temperature=NAN), "temperature is nan; it must be 0 to 100"),
        (SamplingDefaults(top_p=-0.5), "top_p is -0.5"),
        (SamplingDefaults(min_p=NAN), "min_p is nan"),
        (SamplingDefaults(repetition_penalty=1e-38), "repetition_penalty is 1e-38"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_warning(
    given: SamplingDefaults, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert usable_defaults(given, "writer/1") == SamplingDefaults()
    [record] = caplog.records
    assert record.getMessage().startswith(f"writer/1: the model's own sampling.{text}")
