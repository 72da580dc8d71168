import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_client import RetryPolicy, errors
from enginehouse_client.retry import Attempts, RetryBudget

FULL, GONE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(
    policy: RetryPolicy,
    timeout_s: float | None = None,
    draw: float = 1.0,
    clock: Clock | None = None,
    budget: RetryBudget | None = None,
) -> Attempts:
    return Attempts(
        policy, budget or RetryBudget(capacity=1e6), timeout_s, clock or Clock(), lambda: draw
    )


@given(
    initial=st.floats(0, 10),
    factor=st.floats(1, 100),
    num_made=st.integers(1, 2000),
    draw=st.floats(0, 1),
    retry_after_s=st.none() | st.floats(0, 60),
)
def test_wait_is_within_bounds_and_not_before_the_server_s_time(
    initial: float, factor: float, num_made: int, draw: float, retry_after_s: float | None
) -> None:
    policy = RetryPolicy(num_made + 1, initial, initial * factor)
    made = attempts(policy, draw=draw)
    error = errors.OverloadedError("full", code=FULL, retry_after_s=retry_after_s)
    wait_s = [made.wait_after(error) for _ in range(min(num_made, 70))][-1]
    assert wait_s is not None
    earliest = retry_after_s or 0.0
    assert earliest <= wait_s <= earliest + policy.max_backoff_s


def test_bound_doubles_up_to_its_maximum() -> None:
    policy = RetryPolicy(max_attempts=9, initial_backoff_s=0.1, max_backoff_s=0.5)
    assert [policy.max_wait_s(n) for n in (1, 2, 3, 4, 2000)] == [0.1, 0.2, 0.4, 0.5, 0.5]


@given(elapsed=st.floats(0, 10), draw=st.floats(0, 1), retry_after_s=st.none() | st.floats(0, 3))
def test_no_wait_outlasts_the_deadline(
    elapsed: float, draw: float, retry_after_s: float | None
) -> None:
    clock = Clock()
    made = attempts(RetryPolicy(), timeout_s=2.0, draw=draw, clock=clock)
    clock.now += elapsed
    wait_s = made.wait_after(
        errors.NotReadyError("loading", code=GONE, retry_after_s=retry_after_s)
    )
    assert made.remaining_s() == max(0.0, 102.0 - clock.now)
    assert wait_s is None or clock.now + wait_s < 102.0


def test_number_of_attempts_is_bounded() -> None:
    made = attempts(RetryPolicy(max_attempts=3), draw=0.0)
    error = errors.ConnectionFailedError("refused", code=GONE)
    assert [made.wait_after(error) for _ in range(3)] == [0.0, 0.0, None]


@pytest.mark.parametrize("name", errors.__all__)
def test_only_what_another_try_may_change_is_tried_again(name: str) -> None:
    kind = getattr(errors, name)
    is_kind = name in {
        *("ConnectionFailedError", "DeviceError", "DeviceLostError"),
        *("NotReadyError", "OverloadedError"),
    }
    for code in grpc.StatusCode:
        is_tried_again = attempts(RetryPolicy()).wait_after(kind("x", code=code)) is not None
        assert is_tried_again == (is_kind and code in (FULL, GONE)), code


def test_budget_stops_hammering_and_recovers_with_success() -> None:
    budget = RetryBudget(capacity=4, refill=0.5)
    error = errors.ConnectionFailedError("refused", code=GONE)

    def is_tried_again() -> bool:
        return attempts(RetryPolicy(), budget=budget).wait_after(error) is not None

    assert [is_tried_again() for _ in range(3)] == [True, True, False]
    for _ in range(8):
        attempts(RetryPolicy(), budget=budget).succeeded()
    assert is_tried_again()


def test_a_server_that_sets_the_pace_does_not_use_up_the_budget() -> None:
    budget = RetryBudget(capacity=2)
    error = errors.OverloadedError("full", code=FULL, retry_after_s=0.1)
    for _ in range(50):
        assert attempts(RetryPolicy(), budget=budget).wait_after(error) is not None


@pytest.mark.parametrize(
    ("max_attempts", "initial", "maximum"), [(0, 0.1, 1.0), (2, -1.0, 1.0), (2, 2.0, 1.0)]
)
def test_a_policy_that_makes_no_sense_is_refused(
    max_attempts: int, initial: float, maximum: float
) -> None:
    with pytest.raises(ValueError, match="must be"):
        RetryPolicy(max_attempts, initial, maximum)
