"""Who gets a processor first where engines compute on the same ones as everything else: engines.

Linux's SCHED_BATCH lets a thread run as much as any other, but it does not interrupt one that is
running when it wakes up. Requests that arrive while an engine computes are then taken in together
a little later, instead of one by one with the engine's data driven out of the caches each time; on
an idle processor nothing changes. Threads inherit the policy of the thread that starts them.
"""

import os
from contextlib import suppress

__all__ = ["compute_first", "give_way"]


def give_way() -> bool:
    """Lets this thread, and those that it starts from now on, interrupt no engine.

    Returns:
        Whether it did: a policy that the operator chose for the process is left alone.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return False
    with suppress(OSError):  # a sandbox may forbid it: slower, nothing worse
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            return True
    return False


def compute_first() -> None:
    """Undoes a `give_way` that did something, for this thread and those that it starts."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
