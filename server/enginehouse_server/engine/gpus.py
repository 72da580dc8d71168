"""The NVIDIA GPUs of this machine, as its driver's own tool says: no context, no package needed.

Knows nothing of engines. What cannot be found out is said in words; nothing here raises.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from .asking import ask

__all__ = ["PLAN_CAPABILITIES", "Gpu", "Gpus", "find_gpus"]

# GPUs that a plan can be for, by flavour of TensorRT; TensorRT-RTX refuses sm90 and sm100 by name.
PLAN_CAPABILITIES: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("sm75", "sm80", "sm86", "sm89", "sm90", "sm100", "sm103", "sm120", "sm121"),
    "tensorrt-rtx": ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
}
_TOOL, _ELSEWHERE = "nvidia-smi", "/usr/lib/wsl/lib"  # where Windows puts it for Linux
_FIELDS = ("index", "uuid", "compute_cap", "memory.total", "driver_version", "name")
_TIMEOUT_S = 20  # the tool takes seconds where nothing keeps the driver loaded
_CUDA_VERSION = re.compile(r"CUDA(?: UMD)? Version\s*:\s*(\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that CUDA may use.

    Attributes:
        index: As nvidia-smi counts.
        name: Its own.
        compute_capability: As "sm90".
        memory_bytes: All of its memory; 0 if it does not say.
    """

    index: int
    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Gpus:
    """All of them.

    Attributes:
        devices: Those that CUDA_VISIBLE_DEVICES leaves, in its order.
        driver: Version of the driver; empty without one.
        cuda: Greatest CUDA version that the driver serves; empty if it does not say.
        obstacle: Why there are none; empty if there are.
    """

    devices: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda: str = ""
    obstacle: str = ""


def find_gpus(variables: Mapping[str, str] = os.environ) -> Gpus:
    """Asks nvidia-smi.

    Args:
        variables: The environment: its PATH and CUDA_VISIBLE_DEVICES count.
    """
    path = os.pathsep.join((variables.get("PATH", os.defpath), _ELSEWHERE))
    tool = shutil.which(_TOOL, path=path)
    if tool is None:
        return Gpus(obstacle=f"{_TOOL} is not found, so there is no NVIDIA driver")
    rows, fault = _asked(tool, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")
    if fault:
        return Gpus(obstacle=fault)
    found = [gpu for row in rows.splitlines() if (gpu := _parsed(row))]
    if not found:
        return Gpus(obstacle=f"{_TOOL} lists none: {_first_line(rows) or 'it says nothing'}")
    driver, cuda = found[0].driver, _cuda_version(tool)
    chosen = variables.get("CUDA_VISIBLE_DEVICES")
    visible = found if chosen is None else _visible(found, chosen)
    obstacle = "" if visible else f"CUDA_VISIBLE_DEVICES={chosen!r} hides all {len(found)} of them"
    return Gpus(tuple(listed.gpu for listed in visible), driver, cuda, obstacle)


@dataclass(frozen=True, slots=True)
class _Listed:
    gpu: Gpu
    uuid: str
    driver: str


def _asked(tool: str, *arguments: str) -> tuple[str, str]:
    """What the tool prints, and why it failed or nothing."""
    try:
        ended = ask([tool, *arguments], _TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "", f"{_TOOL} did not answer for {_TIMEOUT_S} s: is the driver stuck?"
    except OSError as error:
        return "", f"{_TOOL} cannot be run: {error.strerror}"
    if ended.returncode:
        said = _first_line(ended.stdout) or _first_line(ended.stderr)
        return "", f"{_TOOL} failed with {ended.returncode}: {said or 'it says nothing'}"
    return ended.stdout, ""


def _parsed(row: str) -> _Listed | None:
    """A row of the table; None for what is none, such as a warning among them."""
    # The name comes last: it alone may have a comma in it.
    parts = [part.strip() for part in row.split(",", len(_FIELDS) - 1)]
    if len(parts) < len(_FIELDS) or not re.fullmatch(r"\d+\.\d+", parts[2]):
        return None
    index, uuid, capability, mebibytes, driver, name = parts
    if not index.isdigit():
        return None
    memory = int(mebibytes) << 20 if mebibytes.isdigit() else 0  # "[N/A]" where it is the host's
    gpu = Gpu(int(index), name, "sm" + capability.replace(".", ""), memory)
    return _Listed(gpu, uuid, driver)


def _visible(found: list[_Listed], chosen: str) -> list[_Listed]:
    """What CUDA makes of CUDA_VISIBLE_DEVICES: in its order, up to the first that there is none."""
    visible = []
    for word in (part.strip() for part in chosen.split(",")):
        if word.startswith("MIG-"):
            return found  # parts of GPUs are not listed: any of these may be meant
        match = [
            listed
            for listed in found
            if word == str(listed.gpu.index)
            or (word.startswith("GPU-") and listed.uuid.startswith(word))
        ]
        if len(match) != 1:
            break
        visible += match
    return visible


def _cuda_version(tool: str) -> str:
    for arguments in (("--version",), ()):
        said = _CUDA_VERSION.search(_asked(tool, *arguments)[0])
        if said:
            return said[1]
    return ""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
