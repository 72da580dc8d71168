"""How many processor threads this process may use, as the kernel and its control groups say."""

import math
import os
from pathlib import Path

__all__ = ["available_threads", "default_lanes"]

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "quota period", or "max period"
_QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_PERIOD_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def available_threads() -> int:
    """Threads that can run at once: the affinity mask, lowered by a quota; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota()
    return max(1, min(allowed or 1, math.ceil(quota) if quota else 1 << 30))


def default_lanes(num_threads: int) -> int:
    """Lanes of an engine on a processor: four threads each, at least two lanes.

    A batch on few threads wastes less of them at its layers' ends, and another batch computes while
    the results of one are delivered.
    """
    return min(num_threads, max(2, num_threads // 4))


def _quota() -> float | None:
    """Processors' worth of time that the control group grants; None without a limit."""
    try:
        if _CPU_MAX.exists():
            quota, period = _CPU_MAX.read_text().split()
        else:
            quota, period = _QUOTA_V1.read_text(), _PERIOD_V1.read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no control group, or "max": no limit
        return None
