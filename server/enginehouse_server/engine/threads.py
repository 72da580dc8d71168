"""How many processor threads this process may use, as the kernel and its control groups say."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["available_threads", "default_lanes"]

_MEMBERSHIP = Path("/proc/self/cgroup")  # a line "number:controllers:path" for each hierarchy
_GROUPS = Path("/sys/fs/cgroup")
# Where a container shows its own group as the root, whatever the path; version 2, then version 1.
_ROOTS = ("0::/", "1:cpu:/")


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
    """Processors' worth of time that the control groups grant; None without a limit."""
    quotas = map(_quota_of, _folders())
    return min((quota for quota in quotas if quota is not None), default=None)


def _folders() -> Iterator[Path]:
    """The control groups that this process is in: its own, and those around it, which bound it."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = []
    for line in (*lines, *_ROOTS):
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            group = PurePosixPath(path.lstrip("/"))
            root = _GROUPS / "cpu" if controllers else _GROUPS
            yield from (root / each for each in (group, *group.parents))


def _quota_of(folder: Path) -> float | None:
    both = folder / "cpu.max"  # version 2: "quota period", or "max period"
    try:
        if both.exists():
            quota, period = both.read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no control group, or "max": no limit
        return None
