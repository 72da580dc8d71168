"""Kernels that TensorRT for RTX compiled where a plan runs, kept from one load to the next.

The runtime collects them in a cache of its own form, and says itself whether it takes one back. A
file has one such cache and what it is of, so that what is damaged or of another driver never gets
to the runtime. It is code that the GPU runs: whoever writes the folder is trusted.
"""

import json
import logging
import re
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

from enginehouse_server.engine.cuda import CudaInfo
from enginehouse_server.engine.whole_file import replace_file

from .flavour import Handle

__all__ = ["KernelCache", "KernelOrigin"]

_log = logging.getLogger(__name__)
_MOST_HEADER = 4096  # bytes


class _RuntimeCache(Protocol):
    """What is used of TensorRT's IRuntimeCache."""

    def deserialize(self, blob: bytes) -> bool: ...
    def serialize(self) -> Handle: ...


class KernelOrigin(NamedTuple):
    """What compiled kernels, and for what: with any other of these they are of no use.

    Attributes:
        runtime: Version of TensorRT for RTX.
        device: Its name.
        compute_capability: As "sm89".
        driver: CUDA version of the driver.
    """

    runtime: str
    device: str
    compute_capability: str
    driver: str

    @classmethod
    def of(cls, runtime: str, device: CudaInfo) -> "KernelOrigin":
        """Of a runtime on a device."""
        major, minor = device.compute_capability
        return cls(runtime, device.name, f"sm{major}{minor}", device.driver_version)

    @property
    def stem(self) -> str:
        """Begins the names of files, one for each kind of device: others replace what is there."""
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.device).strip("-")
        return f"{name}-{self.compute_capability}"


class KernelCache:
    """The runtime's cache of one plan's kernels, and its file.

    Attributes:
        own: The runtime's; it must outlive all contexts that use it.
    """

    def __init__(self, own: _RuntimeCache, folder: Path, origin: KernelOrigin) -> None:
        """Fills the runtime's empty cache with what the file has, if it is of any use here.

        Args:
            own: The runtime's, used by this alone.
            folder: Of this plan's kernels alone.
            origin: Of what is compiled here.
        """
        self.own, self._origin = own, origin
        self._file = folder / f"{origin.stem}.kernels"
        self._kept = ""  # hash of what the file has
        self._read()

    def keep(self) -> None:
        """Writes the file again if anything was compiled that it has not; nothing may compute."""
        found = self.own.serialize()
        if found is None:
            _log.warning("%s is not written: TensorRT for RTX gives no kernels", self._file)
            return
        content = memoryview(found)
        digest = sha256(content).hexdigest()
        if digest == self._kept:
            return
        header = json.dumps({**self._origin._asdict(), "sha256": digest})
        try:
            replace_file(self._file, (header.encode() + b"\n", content))
        except OSError as error:
            _log.warning(
                "%s cannot be written (%s): kernels are compiled again at the next start; name "
                "another folder with --state-dir",
                *(self._file, error.strerror),
            )
            return
        self._kept = digest
        _log.info("%s: %d KiB of kernels are kept", self._file, content.nbytes >> 10)

    def _read(self) -> None:
        try:
            header, _, content = self._file.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            self._ignore(str(error.strerror))
            return
        digest = sha256(content).hexdigest()
        if reason := self._obstacle(header, digest):
            self._ignore(reason)
        elif not self.own.deserialize(content):
            self._ignore("TensorRT for RTX refuses it here")
        else:
            self._kept = digest
            _log.info("%s: %d KiB of kernels are used again", self._file, len(content) >> 10)

    def _obstacle(self, header: bytes, digest: str) -> str:
        """Why the file is of no use here; empty if nothing speaks against it."""
        try:
            found = json.loads(header[:_MOST_HEADER])
        except ValueError:
            return "it is damaged"
        if not isinstance(found, dict) or found.get("sha256") != digest:
            return "it is damaged"
        for name, here in self._origin._asdict().items():
            if found.get(name) != here:
                return f"its {name.replace('_', ' ')} is {found.get(name)}, and here is {here}"
        return ""

    def _ignore(self, reason: str) -> None:
        _log.warning(
            "%s is not used (%s): kernels are compiled anew, and replace it", self._file, reason
        )
