import gc
import weakref

import pytest

from enginehouse_builder.errors import SpecError
from enginehouse_builder.memory import check_memory, give_back_memory


def test_a_model_that_does_not_fit_is_refused_with_the_figures() -> None:
    with pytest.raises(SpecError) as raised:
        check_memory(1_000_000_000, "org/large", 5_500_000_000)
    message = str(raised.value)
    assert "org/large has 1000 million weights" in message
    assert "about 5.8 GB (in fp32 4.0 GB" in message
    assert "5.5 GB of memory are free" in message
    assert "larger machine" in message


def test_a_model_that_just_fits_is_taken() -> None:
    check_memory(1_000_000_000, "org/large", 5_750_000_000)


def test_this_machine_takes_a_small_model() -> None:
    check_memory(1000, "org/small")


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_what_refers_to_itself_is_given_back() -> None:
    gc.disable()
    try:
        left = weakref.ref(_Cycle())
        assert left() is not None
        give_back_memory()
        assert left() is None
    finally:
        gc.enable()
