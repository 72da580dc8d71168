"""What the processor calls itself and can do, as the kernel says."""

import platform
from collections.abc import Iterator
from pathlib import Path

__all__ = ["processor_features", "processor_name"]

_CPUINFO = Path("/proc/cpuinfo")
# What runtimes have faster kernels for, on x86 and then on Arm.
_FEATURES = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def processor_name() -> str:
    """The processor's own name, or else its architecture."""
    for value in _values("model name"):
        return value
    return platform.processor() or platform.machine()


def processor_features() -> tuple[str, ...]:
    """The instructions that it has, of those that engines gain by; none where nobody says."""
    for field in ("flags", "Features"):
        for value in _values(field):
            known = set(value.split())
            return tuple(feature for feature in _FEATURES if feature in known)
    return ()


def _values(name: str) -> Iterator[str]:
    """What the kernel says under a name, of each processor; nothing where it does not."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        field, _, value = line.partition(":")
        if field.strip() == name and value.strip():
            yield value.strip()
