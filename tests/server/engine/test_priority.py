import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from enginehouse_server.engine.priority import compute_first, give_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these policies")
_T = TypeVar("_T")


def in_a_thread(work: Callable[[], _T]) -> _T:
    """Policies belong to threads: the test's own keeps its."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(10)


def use(policy: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(0))


def test_giving_way_is_inherited_and_can_be_undone() -> None:
    def work() -> tuple[bool, int, int, int]:
        use(os.SCHED_OTHER)
        gave_way = give_way()
        inherited = in_a_thread(lambda: os.sched_getscheduler(0))

        def engine() -> int:
            compute_first()
            return in_a_thread(lambda: os.sched_getscheduler(0))

        return gave_way, inherited, in_a_thread(engine), os.sched_getscheduler(0)

    assert in_a_thread(work) == (True, os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_BATCH)


@pytest.mark.parametrize("name", ["SCHED_BATCH", "SCHED_IDLE"])
def test_a_policy_that_the_operator_chose_is_left_alone(name: str) -> None:
    policy = getattr(os, name)

    def work() -> tuple[bool, int]:
        use(policy)
        return give_way(), os.sched_getscheduler(0)

    assert in_a_thread(work) == (False, policy)


def test_a_sandbox_that_forbids_it_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    for name in ("sched_getscheduler", "sched_setscheduler"):
        monkeypatch.setattr(os, name, forbidden)
    assert give_way() is False
    compute_first()
