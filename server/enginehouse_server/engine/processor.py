"""What the processor calls itself, for runtimes that do not say."""

import platform
from pathlib import Path

__all__ = ["processor_name"]

_CPUINFO = Path("/proc/cpuinfo")


def processor_name() -> str:
    """The processor's own name, or else its architecture."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        field, _, value = line.partition(":")
        if field.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()
