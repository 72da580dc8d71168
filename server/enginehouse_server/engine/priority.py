"""Who gets a processor first where engines compute on the same ones as everything else: engines.

Linux's SCHED_BATCH lets a thread run as much as any other, but it does not interrupt one that is
running when it wakes up. Requests that arrive while an engine computes are then taken in together
a little later, instead of one by one with the engine's data driven out of the caches each time; on
an idle processor nothing changes. Threads inherit the policy of the thread that starts them.
"""

import os
from contextlib import suppress

__all__ = ["compute_first", "give_way"]


def give_way() -> None:
    """Lets this thread, and those that it starts from now on, interrupt no engine."""
    if hasattr(os, "SCHED_BATCH"):
        _set_policy(os.SCHED_BATCH)


def compute_first() -> None:
    """Undoes `give_way` for this thread and those that it starts: call it before making engines."""
    if hasattr(os, "SCHED_OTHER") and os.sched_getscheduler(0) == os.SCHED_BATCH:
        _set_policy(os.SCHED_OTHER)


def _set_policy(policy: int) -> None:
    with suppress(OSError):  # a sandbox may forbid it: slower, nothing worse
        os.sched_setscheduler(0, policy, os.sched_param(0))
