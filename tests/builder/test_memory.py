import pytest

from enginehouse_builder.errors import SpecError
from enginehouse_builder.memory import check_memory


def test_a_model_that_does_not_fit_is_refused_with_the_figures() -> None:
    with pytest.raises(SpecError) as raised:
        check_memory(1_000_000_000, "org/large", 5_500_000_000)
    message = str(raised.value)
    assert "org/large has 1000 million weights" in message
    assert "about 6.0 GB (in fp32 4.0 GB" in message
    assert "5.5 GB of memory are free" in message
    assert "larger machine" in message


def test_a_model_that_just_fits_is_taken() -> None:
    check_memory(1_000_000_000, "org/large", 6_000_000_000)


def test_this_machine_takes_a_small_model() -> None:
    check_memory(1000, "org/small")
