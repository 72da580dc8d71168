"""How much memory this process may use, and still has, as the kernel and its control groups say."""

from pathlib import Path

__all__ = ["available_bytes", "total_bytes"]

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")  # of this process, as a container sees it
_V2 = (_GROUP / "memory.max", _GROUP / "memory.current", _GROUP / "memory.stat")
_V1 = tuple(
    _GROUP / "memory" / name
    for name in ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
)


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the kernel does not say.

    It is what the machine has left, lowered by what a control group grants. Pages of files that
    nobody used lately are counted as free: they are given up on demand.
    """
    found = (_of_machine("MemAvailable"), _of_group(*_V2), _of_group(*_V1))
    return min((n for n in found if n is not None), default=None)


def total_bytes() -> int | None:
    """Memory that this process can have at most; None where the kernel does not say."""
    found = (_of_machine("MemTotal"), _limit(_V2[0]), _limit(_V1[0]))
    return min((n for n in found if n is not None), default=None)


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())  # "max" is no number: no limit
    except (OSError, ValueError):
        return None


def _of_machine(name: str) -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _of_group(limit: Path, used: Path, stat: Path) -> int | None:
    try:
        most = int(limit.read_text())  # "max" is no number: no limit
        left = most - int(used.read_text())
        for line in stat.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return max(0, left + int(value))
        return max(0, left)
    except (OSError, ValueError):
        return None
