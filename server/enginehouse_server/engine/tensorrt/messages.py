"""What TensorRT says: to Python's logging, and the last error as the reason of what failed."""

import logging
from types import ModuleType
from typing import Protocol

from enginehouse_server.engine.cuda.errors import device_error
from enginehouse_server.errors import DeviceError

__all__ = ["Messages"]

_log = logging.getLogger(__name__)
_PREFIX = "TensorRT: "


class _Severity(Protocol):
    @property
    def name(self) -> str: ...


_LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,  # a screenful at every load
    "VERBOSE": logging.DEBUG,
}


class Messages:
    """A runtime's logger. Messages may come on any thread.

    Attributes:
        logger: What the runtime is given; it must outlive all that was made with it.
    """

    def __init__(self, trt: ModuleType) -> None:
        self._last_error = ""
        hear = self._hear

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # the binding refuses one that only calls super()

            def log(self, severity: _Severity, msg: str) -> None:
                hear(severity.name, msg)

        self.logger = Logger()

    def reason(self) -> str:
        """The last error, once; what to say where none was given."""
        found, self._last_error = self._last_error, ""
        return found or "it gives no reason"

    def failed(self, doing: str) -> DeviceError:
        """The error of ours for a call that returned that it failed.

        Args:
            doing: What failed, for example "enqueuing a batch".
        """
        return device_error(RuntimeError(self.reason()), doing)

    def _hear(self, severity: str, text: str) -> None:
        level = _LEVELS.get(severity, logging.ERROR)
        if level == logging.ERROR:
            self._last_error = text
        _log.log(level, "%s%s", _PREFIX, text)
